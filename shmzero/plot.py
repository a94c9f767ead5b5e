"""python -m shmzero.plot RUN: a training run's metrics as a picture.

Strength against fixed opponents over wall time, with 95 % intervals; losses of value and critic beside
that of a constant guess; entropy of the policy; the rating, where there is one. Needs matplotlib. The same
metrics for TensorBoard, which needs tensorboard.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shmzero.command import Parser, run_command
from shmzero.errors import ConfigError

METRICS_NAME = "metrics.jsonl"
LOSSES = {"value_loss": "value", "critic_loss": "critic", "utility_variance": "a constant guess"}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file in order; one that a kill cut off is left out. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"there is no {path}; give the folder of a training run")
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


class Board:
    """A run's metrics for TensorBoard. Needs tensorboard: pip install tensorboard."""

    @staticmethod
    def check() -> None:
        """Raises ConfigError where tensorboard is missing."""
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("tensorboard is set and not installed; install it with: pip install tensorboard")

    def __init__(self, folder: Path) -> None:
        self.check()
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
    for opponent, mode in sorted({(m["match"]["opponent"], m["match"]["mode"]) for m in matches}):
        own = [m for m in matches if (m["match"]["opponent"], m["match"]["mode"]) == (opponent, mode)]
        mean = [m["match"]["mean"] for m in own]
        below = [m["match"]["mean"] - m["match"]["low"] for m in own]
        above = [m["match"]["high"] - m["match"]["mean"] for m in own]
        minutes = [m["elapsed_s"] / 60 for m in own]
        seats = "one seat" if mode == "one" else "all seats but one"
        strength.errorbar(minutes, mean, yerr=[below, above], marker="o", capsize=3, label=f"{opponent}, {seats}")
    strength.axhline(0, color="grey", linewidth=0.8)
    strength.set_ylabel("points a round more than the others")
    strength.set_title(folder.resolve().name)
    if matches:
        strength.legend()
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
        raise ConfigError(f"the picture cannot be written to {out}: {error}") from None


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
