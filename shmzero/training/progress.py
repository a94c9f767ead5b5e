"""Where a training run stands, as a line and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmzero.engine.progress import Progress


def clock(seconds: float) -> str:
    """2:05, or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class TrainProgress:
    """Where a training run stands."""

    done: float
    """Share of the run, 0 to 1."""
    elapsed_s: float
    left_s: float | None
    """At the rate of the last seconds; None where that cannot be said."""
    rounds: int
    """How many rounds all sessions have played."""
    play: Progress
    """The progress of self-play since its processes were started."""
    play_waits: float
    """Share of that time in which self-play was held back for the learner."""
    waits_for: str | None
    """Who self-play waits for: the learner or the inference processes; None while it plays."""
    waits_s: float
    """For how many seconds it has waited for them."""
    learner: dict[str, Any]
    """Its last report, or only the step of the last checkpoint."""
    matches: list[dict[str, Any]]
    """The last against each opponent."""
    rating: dict[str, Any] | None

    def line(self) -> str:
        """All that matters, on one line."""
        entropy = self.learner.get("entropy")
        parts = [
            f"{self.done:4.0%}",
            ", ".join(filter(None, [f"{self.rounds:,} rounds", self._waits(), self._rate()])),
            f"step {self.learner.get('steps', 0):,}" + ("" if entropy is None else f", entropy {entropy:.2f}"),
            *(f"{m['mean']:+.2f}±{(m['high'] - m['low']) / 2:.2f} vs {m['opponent']}" for m in self.matches),
            f"ETA {'?' if self.left_s is None else clock(self.left_s)}",
        ]
        return " | ".join(parts)

    def _waits(self) -> str:
        return f"has waited {clock(self.waits_s)} for {self.waits_for}" if self.waits_for else ""

    def _rate(self) -> str:
        """Rounds a minute, where anything was played yet."""
        if self.play.evaluations_per_s == 0:
            return ""
        return f"{self.play.rounds_per_min:,.0f}/min" + (" when it plays" if self.waits_for else "")

    def table(self) -> Any:
        """The same and more, for a terminal that rich draws on."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = "" if self.left_s is None else f", {clock(self.left_s)} left"
        head = Table.grid(padding=(0, 1))
        head.add_row(ProgressBar(1.0, self.done, width=30), f"{self.done:.0%}", f"{clock(self.elapsed_s)}{left}")
        body = Table.grid(padding=(0, 2))
        body.add_column(style="bold", no_wrap=True, min_width=len("self-play"))
        body.add_column(overflow="ellipsis", no_wrap=True)
        play, learner = self.play, self.learner
        body.add_row("self-play", ", ".join(filter(None, [f"{self.rounds:,} rounds", self._rate()])))
        if self.waits_for:
            body.add_row("", self._waits())
        if play.evaluations_per_s:
            body.add_row("", f"{play.evaluations_per_s:,.0f} evaluations/s in batches of {play.mean_batch_rows:,.0f}; "
                             f"waits {self.play_waits:.0%}")  # fmt: skip
        if self.play.nodes:
            body.add_row("nodes", self.play.nodes_words().removesuffix(" | "))
        body.add_row("learner", f"step {learner.get('steps', 0):,}" + (
            f", {learner['steps_per_s']:.1f}/s; waits {learner['learner_waits']:.0%}" if "loss" in learner else
            "; waits for its first rounds"))  # fmt: skip
        if "loss" in learner:
            critic = f", critic {learner['critic_loss']:.4f}" if learner["critic_loss"] else ""
            body.add_row("losses", f"policy {learner['policy_loss']:+.4f}, value {learner['value_loss']:.4f}{critic}; "
                                   f"a constant guess {learner['utility_variance']:.4f}")  # fmt: skip
            body.add_row("entropy", f"{learner['entropy']:.3f} nats")
        for label, match in zip(["strength", *[""] * len(self.matches)], self.matches, strict=False):
            body.add_row(label, f"{match['mean']:+.2f} ({match['low']:+.2f} to {match['high']:+.2f}) points a round vs "
                                f"{Path(match['opponent']).name}, step {match['steps']:,}")  # fmt: skip
        if self.rating:
            body.add_row("rating", f"{self.rating['rating']:+.0f} ({self.rating['low']:+.0f} to "
                                   f"{self.rating['high']:+.0f}), step {self.rating['steps']:,}")  # fmt: skip
        return Group(Text(), head, body)
