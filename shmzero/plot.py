"""How a training run is seen. python -m shmzero.plot RUN: its metrics as a picture.

Strength against fixed opponents over wall time, with 95 % intervals; losses of value and critic beside
that of a constant guess; entropy of the policy; the rating, where there is one. Needs matplotlib. The same
metrics for TensorBoard, which needs tensorboard; and while the run goes on a table, or a line, that says
where it stands.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

from shmzero.cli.command import run_command
from shmzero.cli.flags import Layout, Parser
from shmzero.errors import ConfigError
from shmzero.runs.folder import RunFolder
from shmzero.runs.metrics import read_metrics

LOSSES = {"value_loss": "value", "critic_loss": "critic", "utility_variance": "a constant guess"}


def _label(text: str) -> str:
    """A name as matplotlib shall show it: bytes that are no text replaced, dollars as they are."""
    return os.fsencode(text).decode(errors="replace").replace("$", r"\$")


def plot(folder: Path, out: Path) -> None:
    """Write the picture of the run in `folder` to `out`. Raises ConfigError."""
    path = RunFolder(folder).metrics
    lines = read_metrics(path)
    matches = [line for line in lines if "match" in line and line["match"]["mode"] in ("one", "rest")]
    rated = [line for line in lines if "rating" in line]
    reports = [line for line in lines if "loss" in line.get("learner", {})]
    if not matches and not reports:
        raise ConfigError(f"{path} holds no matches and no losses yet; train a little longer")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot needs matplotlib; install it with: pip install matplotlib") from None
    figure = Figure(figsize=(9, 12 if rated else 10), layout="constrained")
    heights = (3, 2, 2, 2) if rated else (3, 2, 2)
    strength, losses, entropy, *more = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_strength(strength, matches)
    strength.set_title(_label(folder.resolve().name))
    if matches:
        figure.legend(*strength.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    _draw_learning(losses, entropy, reports)
    if rated:
        _draw_rating(more[0], rated)
    (more[0] if rated else entropy).set_xlabel("minutes")
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the picture cannot be written to {out}: {why}; choose a file with --out") from None


def _minutes(lines: list[dict[str, Any]]) -> list[float]:
    return [line["elapsed_s"] / 60 for line in lines]


def _draw_strength(axes: Any, matches: list[dict[str, Any]]) -> None:
    """Points of a round above the others: a colour for each opponent, a marker for each way to seat them."""
    opponents = list(dict.fromkeys(m["match"]["opponent"] for m in matches))
    for opponent, mode in itertools.product(opponents, ("one", "rest")):
        own = [m for m in matches if (m["match"]["opponent"], m["match"]["mode"]) == (opponent, mode)]
        if not own:
            continue
        seats = "one seat" if mode == "one" else "all seats but one"
        axes.errorbar(
            _minutes(own),
            [m["match"]["mean"] for m in own],
            yerr=_margins([m["match"] for m in own], "mean"),
            capsize=3,
            label=f"{_label(opponent)}, {seats}",
            color=f"C{opponents.index(opponent)}",
            marker="o" if mode == "one" else "s",
            markerfacecolor=None if mode == "one" else "white",
        )
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_ylabel("points a round more than the others")


def _margins(intervals: list[dict[str, Any]], middle: str) -> list[list[float]]:
    """How far the ends of intervals lie below and above their middle, as matplotlib takes it."""
    below = [interval[middle] - interval["low"] for interval in intervals]
    above = [interval["high"] - interval[middle] for interval in intervals]
    return [below, above]


def _draw_learning(losses: Any, entropy: Any, reports: list[dict[str, Any]]) -> None:
    """Losses beside that of a constant guess, and the policy's entropy."""
    for name, label in LOSSES.items():
        losses.plot(_minutes(reports), [report["learner"][name] for report in reports], label=label)
    losses.set_ylabel("mean squared error of the utility")
    losses.set_ylim(bottom=0)
    losses.legend()
    entropy.plot(_minutes(reports), [report["learner"]["entropy"] for report in reports])
    entropy.set_ylabel("entropy of the policy, nats")
    entropy.set_ylim(bottom=0)


def _draw_rating(axes: Any, rated: list[dict[str, Any]]) -> None:
    ratings = [line["rating"] for line in rated]
    axes.errorbar(
        _minutes(rated), [r["rating"] for r in ratings], yerr=_margins(ratings, "rating"), marker="o", capsize=3
    )
    axes.set_ylabel("rating, threshold = 0")


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Parser(
        prog="python -m shmzero.plot",
        usage="python -m shmzero.plot RUN [options]",
        description="Draws a training run: losses, and strength against fixed opponents,\nover wall time.",
        epilog="examples:\n  python -m shmzero.plot runs/smoke --out smoke.png",
        formatter_class=Layout,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run")
    picture = parser.add_argument_group("picture options")
    picture.add_argument("--out", type=Path, metavar="PATH", help="PNG, SVG or PDF to write. (default: RUN/curves.png)")
    given = parser.parse_args(arguments)
    out = given.out or RunFolder(given.run).curves
    plot(given.run, out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
