"""python -m shmzero.plot RUN: a training run's metrics as a picture.

Strength against fixed opponents over wall time, with 95 % intervals; losses of value and critic beside
that of a constant guess; entropy of the policy.
Needs matplotlib: pip install matplotlib.
"""

from __future__ import annotations

import json
import sys
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


def plot(folder: Path, out: Path) -> None:
    """Write the picture of the run in `folder` to `out`. Raises ConfigError."""
    lines = read_metrics(folder / METRICS_NAME)
    matches = [line for line in lines if "match" in line]
    reports = [line for line in lines if "loss" in line.get("learner", {})]
    if not matches and not reports:
        raise ConfigError(f"{folder / METRICS_NAME} holds no matches and no losses yet; train a little longer")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot needs matplotlib; install it with: pip install matplotlib") from None
    figure = Figure(figsize=(9, 10), layout="constrained")
    strength, losses, entropy = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
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
    entropy.set_xlabel("minutes")
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
