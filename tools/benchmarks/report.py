"""Writes the page of all results, and its pictures, from JSON files that tools kept, and from nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from shmzero.errors import ConfigError
from tools.benchmarks.measure import PLAN_ROUNDS_PER_MIN, figure

PAGE = "README.md"
TRAINING_ROUNDS = 5_000_000
"""What the plan's training run plays."""
INTRODUCTION = """# Measured

`env/run python tools/bench.py report` writes this page from the JSON files beside it. Each file is what one command
gave, with the machine, the versions and the commit that were measured; a commit that ends in `-dirty` had changes that
were not committed. AMD's family 26 is Zen 5. Write a file again with its command and `--save tools/results/NAME.json`.

## Method

- Repeats are interleaved: in each repeat every candidate runs once, so that what disturbs one disturbs all. The value
  is the median of the repeats, and the last column has the smallest and the largest of them.
- A ratio is the median of ratios within repeats, never a ratio of two runs.
- A goal is what the value was meant to reach when the benchmark was written.
- Steady rates of an engine: all lanes are busy, all processes are warm, and the counters in shared memory are read at
  the beginning and at the end of a stretch. Engines that are compared are all started first; all but one are stopped.
- Rates from the command on have everything in them: starting Python, loading torch, finishing the last round.
- The roofline is the same serving code with the same network and no self-play, in the processes, threads and batch
  sizes that are fastest on this machine.
- Other transports, queues and the design before are measured in the same run, with the same model, search and rules.
  What they answer is compared with the model's own answers before it is timed.
- Agents play duplicate deals that no training has seen: each deal from every seat. Figures are points a round above the
  opponents, and the last column is the 95 % interval over deals. Where several runs are trained, it is over runs.
- Changes of the training are compared over seeds, each arm on equal time: Welch's interval over the seeds of both
  sides, and p-values after Holm over all comparisons of a file.
"""


def write(folder: Path) -> str:
    """Write the page of all results in `folder`; returns what was written. Raises ConfigError where there are none."""
    found = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise ConfigError(f"no results in {folder}; first: tools/bench.py all")
    missing = "" if importlib.util.find_spec("matplotlib") else NO_PICTURES
    for stem, picture in (("ablate", ablation_picture), ("scaling", scaling_picture)):
        if stem in found and not missing:
            picture(found[stem], folder / f"{stem}.png")
    (folder / PAGE).write_text(page(found, {path.stem for path in folder.glob("*.png")}))
    return f"wrote {folder / PAGE}" + missing


def page(found: dict[str, dict[str, Any]], pictures: set[str]) -> str:
    """The page of the results by their names; `pictures` of these names lie beside it."""
    lines = [
        *INTRODUCTION.splitlines(),
        "",
        "## Files",
        "",
        "| file | machine | commit | date |",
        "|---|---|---|---|---|",
    ]
    for stem, result in found.items():
        machine = result["machine"]
        where = f"{described(machine)} | `{machine['commit']}` | {machine['date']}"
        lines.append(f"| [{stem}](#{stem}) | {where} |")
    lines += ["", *summary(found)]
    for stem, result in found.items():
        lines += [f"## {stem}", "", f"`env/run python {command(result)}`", ""]
        machine = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines += [f"{described(machine)}; {versions}; commit `{machine['commit']}`, {machine['date']}.", ""]
        if stem in pictures:
            lines += [f"![{stem}]({stem}.png)", ""]
        if stem == "ablate":
            lines += contributions(result)
        lines += table(result)
    return "\n".join(lines[:-1]) + "\n"


def command(result: dict[str, Any]) -> str:
    """The command that a file is from; of older files only the benchmark's name is known."""
    return str(result.get("command", f"tools/bench.py {result['benchmark']}"))


NO_PICTURES = ", without pictures: matplotlib is missing; env/run pip install -c env/constraints.txt matplotlib"


def read(path: Path) -> dict[str, Any]:
    """One file of bench.py. Raises ConfigError for any other."""
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(result, dict) or not {"machine", "results"} <= set(result):
            raise ValueError
    except ValueError:
        raise ConfigError(f"{path} is not a file of tools/bench.py; move it away") from None
    return result


def contributions(result: dict[str, Any]) -> list[str]:
    """What each measure brings, the largest first: one over what is left of the rate without it."""
    rows = [row for row in measured(result) if 0 < row["value"] < 1]
    rows.sort(key=lambda row: row["value"])
    lines = ["| switched off, or instead | the whole is so many times faster |", "|---|---:|"]
    return [*lines, *(f"| {row['name']} | {figure(1 / row['value'])} |" for row in rows), ""]


def measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The shares of an ablation; without the engine's own rate, and what could not be measured."""
    return [row for row in result["results"] if row["unit"] == "" and not isinstance(row["value"], str)]


def value_of(result: dict[str, Any], name: str) -> float | None:
    return next((float(row["value"]) for row in result["results"] if row["name"] == name), None)


def summary(found: dict[str, Any]) -> list[str]:
    """Baseline and now, and what that means for a training run."""
    rate = value_of(found["selfplay"], "medium: steady") if "selfplay" in found else None
    if rate is None:
        return []
    hours, before = (TRAINING_ROUNDS / r / 60 for r in (rate, PLAN_ROUNDS_PER_MIN))
    times = value_of(found["selfplay"], "medium: engine against manager")
    queued = (
        []
        if times is None
        else [f"| here, a round a process and Manager queues | {figure(rate / times)} | {hours * times:,.0f} |"]
    )
    return [
        "## What it comes to",
        "",
        "| | rounds/min, 3 x 30 simulations | hours for 5,000,000 rounds |",
        "|---|---|---|",
        f"| the design before: 32 workers, one RTX 4060 | {PLAN_ROUNDS_PER_MIN} | {before:,.0f} |",
        *queued,
        f"| here: {described(found['selfplay']['machine'])} | {figure(rate)} | {hours:,.1f} |",
        "",
    ]


def described(machine: dict[str, Any]) -> str:
    """A machine in a few words."""
    extras = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in machine["flags"]]
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    parts = [f"{cores} of {machine['cpu']}", *extras, *filter(None, [machine.get("gpu")])]
    return ", ".join(parts)


def table(result: dict[str, Any]) -> list[str]:
    lines = ["| | value | unit | goal | repeats |", "|---|---:|---|---|---|"]
    for row in result["results"]:
        spread = "" if row.get("low") is None else f"{figure(row['low'])} .. {figure(row['high'])}"
        lines.append(f"| {row['name']} | {figure(row['value'])} | {row['unit']} | {row['goal']} | {spread} |")
    return [*lines, ""]


def ablation_picture(result: dict[str, Any], path: Path) -> None:
    """What is left with one measure switched off: of the engine's rate, and below, of other programs'."""
    from matplotlib.figure import Figure

    rows = sorted(measured(result), key=lambda row: -row["value"])
    parts = {
        "distinct evaluations/s, relative to the whole engine": [r for r in rows if not is_other(r["name"])],
        "rows/s, relative to serving alone and to plain torch loops": [r for r in rows if is_other(r["name"])],
    }
    parts = {label: bars for label, bars in parts.items() if bars}
    drawn = Figure(figsize=(8, 1.2 + 0.28 * len(rows)), layout="constrained")
    panels = drawn.subplots(len(parts), squeeze=False, height_ratios=[len(bars) for bars in parts.values()])
    for (label, bars), axes in zip(parts.items(), panels[:, 0], strict=True):
        values = [row["value"] for row in bars]
        errors = [[row["value"] - row["low"] for row in bars], [row["high"] - row["value"] for row in bars]]
        axes.barh([row["name"] for row in bars], values, xerr=errors, color="#4878a8")
        axes.axvline(1, color="#444444", linewidth=1)
        axes.set_xlabel(label)
    drawn.savefig(path, dpi=110)


def is_other(name: str) -> bool:
    """Whether a result of `ablate` is not of the engine."""
    return name.startswith(("serving ", "plain torch loops"))


def scaling_picture(result: dict[str, Any], path: Path) -> None:
    """Evaluations/s by workers."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 3.2), layout="constrained")
    axes = drawn.subplots()
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
    drawn.savefig(path, dpi=110)
