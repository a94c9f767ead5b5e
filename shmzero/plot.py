"""How a training run is seen. python -m shmzero.plot RUN: its metrics as a picture.

Strength against fixed opponents over wall time, with 95 % intervals; losses of value and critic beside
that of a constant guess; entropy of the policy; the rating, where there is one. Needs matplotlib. The same
metrics for TensorBoard, which needs tensorboard; and while the run goes on a table, or a line, that says
where it stands.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shmzero.command import Parser, run_command
from shmzero.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from shmzero.selfplay import Progress

METRICS_NAME = "metrics.jsonl"
LOSSES = {"value_loss": "value", "critic_loss": "critic", "utility_variance": "a constant guess"}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file in order; one that a kill cut off is left out. Raises ConfigError, RecordError."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no {path}; give the folder of a training run") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None
    lines = []
    for text in data.splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # no JSON, or no text
            continue
    return lines


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
            f"step {self.learner.get('steps', 0):,}"
            + ("" if entropy is None else f", entropy {entropy:.2f}"),
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


class Board:
    """A run's metrics for TensorBoard. This needs tensorboard: pip install tensorboard."""

    @staticmethod
    def check(folder: Path) -> None:
        """Raises ConfigError where tensorboard is missing, or cannot write to such a folder."""
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("tensorboard is set and not installed; install it with: pip install tensorboard")
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"tensorboard is set with the folder {folder}; allowed: a folder whose path is UTF-8"
            ) from None

    def __init__(self, folder: Path) -> None:
        self.check(folder)
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def add(self, line: dict[str, Any], steps: int) -> None:
        """Write every number of a line of the metrics, by its path of names, at the learner's step."""
        for name, value in numbers(line):
            self._writer.add_scalar(name, value, steps)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def numbers(line: dict[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """(path/of/names, value) of every number in a line; a match goes by its opponent and mode."""
    if path == "match":
        path += f"/{Path(line['opponent']).name}/{line['mode']}"
    for name, value in line.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{path}/{name}" if path else name)
        elif isinstance(value, (int, float)):
            yield (f"{path}/{name}" if path else name), float(value)


def _label(text: str) -> str:
    """A name as matplotlib shall show it: bytes that are no text replaced, dollars as they are."""
    return os.fsencode(text).decode(errors="replace").replace("$", r"\$")


def plot(folder: Path, out: Path) -> None:
    """Write the picture of the run in `folder` to `out`. Raises ConfigError."""
    lines = read_metrics(folder / METRICS_NAME)
    matches = [line for line in lines if "match" in line and line["match"]["mode"] in ("one", "rest")]
    rated = [line for line in lines if "rating" in line]
    reports = [line for line in lines if "loss" in line.get("learner", {})]
    if not matches and not reports:
        raise ConfigError(f"{folder / METRICS_NAME} holds no matches and no losses yet; train a little longer")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot needs matplotlib; install it with: pip install matplotlib") from None
    figure = Figure(figsize=(9, 12 if rated else 10), layout="constrained")
    heights = (3, 2, 2, 2) if rated else (3, 2, 2)
    strength, losses, entropy, *more = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    opponents = list(dict.fromkeys(m["match"]["opponent"] for m in matches))
    for opponent, mode in itertools.product(opponents, ("one", "rest")):
        own = [m for m in matches if (m["match"]["opponent"], m["match"]["mode"]) == (opponent, mode)]
        if not own:
            continue
        mean = [m["match"]["mean"] for m in own]
        below = [m["match"]["mean"] - m["match"]["low"] for m in own]
        above = [m["match"]["high"] - m["match"]["mean"] for m in own]
        minutes = [m["elapsed_s"] / 60 for m in own]
        seats = "one seat" if mode == "one" else "all seats but one"
        strength.errorbar(
            minutes, mean, yerr=[below, above], capsize=3, label=f"{_label(opponent)}, {seats}",
            color=f"C{opponents.index(opponent)}", marker="o" if mode == "one" else "s",
            markerfacecolor=None if mode == "one" else "white",
        )
    strength.axhline(0, color="grey", linewidth=0.8)
    strength.set_ylabel("points a round more than the others")
    strength.set_title(_label(folder.resolve().name))
    if matches:
        figure.legend(*strength.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    minutes = [report["elapsed_s"] / 60 for report in reports]
    for name, label in LOSSES.items():
        losses.plot(minutes, [report["learner"][name] for report in reports], label=label)
    losses.set_ylabel("mean squared error of the utility")
    losses.set_ylim(bottom=0)
    losses.legend()
    entropy.plot(minutes, [report["learner"]["entropy"] for report in reports])
    entropy.set_ylabel("entropy of the policy, nats")
    entropy.set_ylim(bottom=0)
    if rated:
        ratings = [line["rating"] for line in rated]
        below = [r["rating"] - r["low"] for r in ratings]
        above = [r["high"] - r["rating"] for r in ratings]
        more[0].errorbar([line["elapsed_s"] / 60 for line in rated], [r["rating"] for r in ratings],
                         yerr=[below, above], marker="o", capsize=3)  # fmt: skip
        more[0].set_ylabel("rating, threshold = 0")
    (more[0] if rated else entropy).set_xlabel("minutes")
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the picture cannot be written to {out}: {why}; choose a file with --out") from None


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Parser(
        prog="python -m shmzero.plot",
        description="Draws a training run: strength against fixed opponents over wall time, and losses.",
        epilog="example: python -m shmzero.plot runs/smoke --out smoke.png",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--out", type=Path, help="PNG, SVG or PDF to write (default: RUN/curves.png)")
    given = parser.parse_args(arguments)
    out = given.out or given.run / "curves.png"
    plot(given.run, out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
