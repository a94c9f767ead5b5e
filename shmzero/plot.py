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

from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser
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
            minutes,
            mean,
            yerr=[below, above],
            capsize=3,
            label=f"{_label(opponent)}, {seats}",
            color=f"C{opponents.index(opponent)}",
            marker="o" if mode == "one" else "s",
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
    out = given.out or RunFolder(given.run).curves
    plot(given.run, out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
