"""Writes REPORT.md and its pictures from the JSON files of bench.py, never from anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shmzero.errors import ConfigError
from tools.measure import figure

TRAINING_ROUNDS = 5_000_000
"""What the plan's training run plays."""
PLAN_ROUNDS_PER_MIN = 36.7


def write(folder: Path) -> str:
    """The report of all results in `folder`; returns what was written. Raises ConfigError where there are none."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise ConfigError(f"no results in {folder}; first: tools/bench.py all")
    lines = ["# Measured", "", "Written by `tools/bench.py report` from the JSON files beside it.", ""]
    lines += summary(found)
    for stem, picture in (("ablate", ablation_picture), ("scaling", scaling_picture)):
        if stem in found:
            image = folder / f"{stem}.png"
            if picture(found[stem], image):
                lines += [f"![{stem}]({image.name})", ""]
    for stem, result in found.items():
        lines += table(stem, result)
    target = folder / "REPORT.md"
    target.write_text("\n".join(lines))
    return f"wrote {target}"


def value_of(result: dict[str, Any], name: str) -> float | None:
    return next((float(row["value"]) for row in result["results"] if row["name"] == name), None)


def summary(found: dict[str, Any]) -> list[str]:
    """Baseline and now, and what that means for a training run."""
    rate = value_of(found["selfplay"], "medium: steady") if "selfplay" in found else None
    if rate is None:
        return []
    hours, before = (TRAINING_ROUNDS / r / 60 for r in (rate, PLAN_ROUNDS_PER_MIN))
    times = value_of(found["selfplay"], "medium: engine against manager")
    queued = [] if times is None else [
        f"| here, a round a process and Manager queues | {figure(rate / times)} | {hours * times:,.0f} |"
    ]
    return [
        "| | rounds/min, 3 x 30 simulations | hours for 5,000,000 rounds |", "|---|---|---|",
        f"| the design before: 32 workers, one RTX 4060 | {PLAN_ROUNDS_PER_MIN} | {before:,.0f} |",
        *queued,
        f"| here: {described(found['selfplay']['machine'])} | {figure(rate)} | {hours:,.1f} |", "",
    ]


def described(machine: dict[str, Any]) -> str:
    extras = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in machine["flags"]]
    parts = [f"{machine['cores']} cores of {machine['cpu']}", *extras, *filter(None, [machine.get("gpu")])]
    return ", ".join(parts)


def table(stem: str, result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    lines = [f"## {stem}", "", f"{described(machine)}; commit {machine['commit']}, {machine['date']}.", "",
             "| | value | unit | goal | repeats |", "|---|---:|---|---|---|"]
    for row in result["results"]:
        spread = "" if row.get("low") is None else f"{figure(row['low'])} .. {figure(row['high'])}"
        lines.append(f"| {row['name']} | {figure(row['value'])} | {row['unit']} | {row['goal']} | {spread} |")
    return [*lines, ""]


def _axes(width: float, height: float) -> Any:
    """Matplotlib's axes, or None where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained").subplots()


def ablation_picture(result: dict[str, Any], path: Path) -> bool:
    """Share of the engine's rate that is left with one measure switched off."""
    axes = _axes(8, 3.5)
    if axes is None:
        return False
    rows = [row for row in result["results"] if row["unit"] != "evaluations/s"]
    rows.sort(key=lambda row: -row["value"])
    errors = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
    axes.barh([row["name"] for row in rows], [row["value"] for row in rows], xerr=errors, color="#4878a8")
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_xlabel("distinct evaluations/s, relative to the whole engine")
    axes.figure.savefig(path, dpi=110)
    return True


def scaling_picture(result: dict[str, Any], path: Path) -> bool:
    """Evaluations/s by workers."""
    axes = _axes(6, 3.2)
    if axes is None:
        return False
    rows = [row for row in result["results"] if row["unit"] == "evaluations/s"]
    workers = [int(row["name"].split()[0]) for row in rows]
    values = [row["value"] for row in rows]
    errors = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
    axes.errorbar(workers, values, yerr=errors, marker="o", capsize=3, color="#4878a8")
    axes.set_xscale("log", base=2)
    axes.set_xticks(workers, [str(n) for n in workers])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("workers")
    axes.set_ylabel("distinct evaluations/s")
    axes.figure.savefig(path, dpi=110)
    return True
