"""What README.md and the pages say is so: examples run, commands are understood, links lead somewhere, figures were
measured, and the page of a room names all of its files."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shmzero
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.plan import resolve
from shmzero.machine import Machine
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NETS
from shmzero.runs.checkpoints import numbered_path
from shmzero.runs.folder import CHECKPOINT_FOLDER
from shmzero.service.config import ServeConfig
from shmzero.training.config import TrainConfig
from shmzero.training.plan import resolve_training

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"
PACKAGE = ROOT / "shmzero"
ROOM_PAGES = sorted(PACKAGE.glob("*/README.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tools/results/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *ROOM_PAGES,
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
README = TEXTS["README.md"]


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page, text) of every block of code of a kind; "" is a block of commands."""
    found = []
    for page, text in TEXTS.items():
        found += [(page, body) for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M) if name == kind]
    return found


EXAMPLES = blocks("python")
COMMANDS = [
    (page, line.partition("#")[0].strip())
    for page, body in blocks("")
    for line in body.splitlines()
    if line.startswith("env/run ")
]


def words(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


# --- examples -----------------------------------------------------------------------------------------


def test_every_python_and_command_block_is_tested() -> None:
    assert {page for page, _ in EXAMPLES} >= {"README.md", "docs/serving.md", "docs/training.md", "docs/running.md"}
    assert len(COMMANDS) > 10
    known = {name for text in TEXTS.values() for name in re.findall(r"^```(\w+)$", text, re.M)}
    assert known == {"python"}, "blocks of other kinds have no test"


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[page for page, _ in EXAMPLES])
def test_python_example_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    _, text = EXAMPLES[number]
    program = tmp_path / "program.py"
    program.write_text(text)
    if "runs/smoke" in text:  # what the training before it would have left
        checkpoints = tmp_path / "runs/smoke" / CHECKPOINT_FOLDER
        checkpoints.mkdir(parents=True)
        save_checkpoint(BlobNet(NETS["quick"]), numbered_path(checkpoints, 1))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = functools.partial(subprocess.run, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    if "runs/first" in text:
        play = "-m shmzero.selfplay --rounds 60 --evaluator hash --preset light --out runs/first"
        assert run([sys.executable, *play.split()]).returncode == 0
    result = run([sys.executable, str(program)])
    assert result.returncode == 0 and result.stderr == "", result.stderr


@pytest.mark.parametrize("command", dict.fromkeys(command for _, command in COMMANDS))
def test_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flags are parsed, and nothing is started."""
    _, *arguments = shlex.split(command)
    if arguments[0] in ("pytest", "pip"):
        return
    if arguments[0] == "ray":
        commands = pytest.importorskip("ray.scripts.scripts")
        commands.cli.commands[arguments[1]].make_context(arguments[1], arguments[2:])
        return
    assert arguments.pop(0) == "python"
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), command
        if arguments[0] == "tools/bench.py":
            from tools import bench

            bench.parser().parse_args(arguments[1:])
        return
    monkeypatch.chdir(tmp_path)
    for name in ("runs/evening", "runs/smoke"):
        save_checkpoint_in(tmp_path / name)
    Path("mine.toml").write_text("workers = 2\n")
    parse(arguments[1].removeprefix("shmzero."), arguments[2:], monkeypatch)


def save_checkpoint_in(run: Path) -> None:
    (run / CHECKPOINT_FOLDER).mkdir(parents=True)
    save_checkpoint(BlobNet(NETS["quick"]), numbered_path(run / CHECKPOINT_FOLDER, 1))


def parse(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises ConfigError where a command of the package does not understand `arguments`."""
    import shmzero.arena
    import shmzero.plot
    import shmzero.records
    import shmzero.selfplay
    import shmzero.serve
    import shmzero.train

    if name in ("selfplay", "train", "arena", "serve"):
        getattr(shmzero, name).parse(arguments)
    else:  # what they read is not there, and they say so; a flag that they do not know is another error
        with pytest.raises(shmzero.ConfigError, match="there is no"):
            getattr(shmzero, name)._main(arguments)


SHORTER = {
    "selfplay": "--rounds 10 --preset light",
    "train": "--rounds 600 --minutes 20 --deals 4",
    "arena": "--deals 2",
}
"""What the README's commands are given as well, to be done in seconds."""


@pytest.mark.slow
def test_commands_of_the_readme_run_one_after_the_other(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for page, command in COMMANDS:
        if page != "README.md" or "-m shmzero." not in command:
            continue
        name = command.partition("-m shmzero.")[2].split()[0]
        arguments = [sys.executable, *shlex.split(f"{command} {SHORTER[name]}")[2:]]
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, (command, done.stderr)


# --- links and files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_places_that_exist(page: str) -> None:
    text = TEXTS[page]
    for target in [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page} links to {target}"


def test_worked_score_is_what_the_rules_say() -> None:
    from tests.support.cases import round_of

    r = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, "1 0 2 | SA S5 H2 | CA C2 C9")
    assert r.scores() == [0, 10, 12]
    assert "`SA C2 | S5 C9 | H2 CA`" in words(TEXTS["shmzero/game/README.md"])


def test_places_to_change_hold_what_the_table_says() -> None:
    section = TEXTS["CONTRIBUTING.md"].partition("\n## Where to change what\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)` in `([^`]+)`", section)
    assert len(named) == 7
    for name, file in named:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"{name} is not in {file}"


def test_default_of_max_batch_is_what_the_page_says() -> None:
    def rows(has_cuda: bool) -> set[int]:
        machine = Machine(cores=8, has_cuda=has_cuda)
        trained = [plan.max_batch for plan in resolve_training(TrainConfig(), machine).stages]
        return {resolve(SelfPlayConfig(), machine).max_batch, *trained}

    services = (shmzero.InferenceServer, shmzero.BatchedEvaluator)
    service = {ServeConfig().options().max_batch}
    service |= {inspect.signature(kind).parameters["max_batch"].default for kind in services}
    (cpu,), (cuda,), (served,) = rows(has_cuda=False), rows(has_cuda=True), service
    said = f"is {cpu:,} rows on a CPU and {cuda:,} on CUDA in self-play and training, and {served:,} in a service"
    assert said in words(TEXTS["shmzero/inference/README.md"])


def test_what_the_page_on_learning_cites_stands_under_its_sources_and_nothing_else() -> None:
    text, _, sources = TEXTS["docs/how-it-learns.md"].partition("\n## Sources\n")
    name = r"([A-Z]\w+)(?: et al\.| and [A-Z]\w+)?,?"
    cited = re.findall(rf"{name} \(?((?:19|20)\d\d)\b", words(text))
    listed = [(entry.split()[0].strip(",:"), entry.strip()[-5:-1]) for entry in sources.split("\n- ")[1:]]
    assert set(cited) == set(listed) and len(listed) == len(set(listed))


# --- figures ------------------------------------------------------------------------------------------


def table(page: str, section: str) -> list[list[str]]:
    """Cells of the rows of a section's first table, its head included."""
    text = TEXTS[page].partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = next(part for part in text.split("\n\n") if part.strip().startswith("|")).strip().splitlines()
    rows = [line[1:-1].split("|") for line in lines if "---" not in line]
    return [[cell.strip(" `") for cell in row] for row in rows]


def values(name: str) -> dict[str, Any]:
    kept = json.loads((RESULTS / f"{name}.json").read_text())
    return {result["name"]: result["value"] for result in kept["results"]}


FIGURES = {
    "search with its encoding": ("search medium, 256 lanes", "{:.0f} ns", 1),
    "self-play, 3 worlds of 30 simulations": ("medium: steady distinct evaluations", "{:,.0f}/s", 1),
    "the same as a share": ("roofline_share", "{:.0%}", 1),
    "the same in rounds": ("medium: steady", "{:,.0f}/min", 10),
    "times faster": ("medium: engine against manager", "{:.0f}", 1),
    "`Client.evaluate`": ("ring: 1 rows, median", "{:.1f} µs", 1),
}
"""The result that a row of the figures shows, by how the row begins: its name, its form, and what it is rounded to."""


def test_figures_are_those_that_their_commands_gave() -> None:
    _, *rows = table("README.md", "Figures")
    assert len(rows) == len(FIGURES) <= 8
    for (what, figure, command), (begin, (name, form, unit)) in zip(rows, FIGURES.items(), strict=True):
        assert what.startswith(begin.strip("`"))
        assert figure == form.format(round(values(command)[name] / unit) * unit if unit > 1 else values(command)[name])


def test_strength_is_what_the_matches_gave() -> None:
    (_, *opponents, _), *rows = table("README.md", "Strength")
    assert opponents == ["threshold", "mc90", "mc900"]
    kept = {"2 minutes": "training", "10 minutes": "training_laptop", "60 minutes": "training_hour"}
    assert [trained for trained, *_ in rows] == list(kept)
    for trained, *figures, command in rows:
        found = values(kept[trained])
        assert command == ("training" if kept[trained] == "training" else "training --run RUN")
        wanted = [found[f"policy against {opponent}, one against the others"] for opponent in opponents]
        assert figures == [f"{value:.2f}" for value in wanted], trained


def test_one_card_figures_are_what_exact_play_gave() -> None:
    found, text = values("exact_play"), words(TEXTS["docs/training.md"])
    mean, worst = (max(v for name, v in found.items() if name.endswith(w)) for w in (": mean loss", ": worst hand"))
    assert f"at most {mean:.3f} points below the best response on average, and {worst:.2f} with the worst hand" in text
    agents = [v for name, v in found.items() if name.endswith("the agent bids 1 from")]
    strong = [v for name, v in found.items() if name.startswith("ace, king, queen of trumps")]
    assert strong == [1, 1, 1, 1] and "ace, king and queen of trumps among five cards it bids 2" in text
    assert agents == ["2", "4", "6", "8"] and "from the right rank on, with 3 to 6 players" in text


ARMS = {
    "`--search 3x30 --targets visits`": "visits against base",
    "`--search 3x30 --targets improved`": "improved against base",
    "suits in their own order": "fixed suits against base",
    "a head that predicts tricks": "tricks head against base",
    "replay ratio 2": "replay ratio 2 against base",
    "replay ratio 4": "replay ratio 4 against base",
    "replay ratio 8": "replay ratio 8 against base",
    "rivalry 1": "rivalry 1 against base",
    "entropy down to 0.002": "entropy to 0.002 against base",
    "sequential halving": "halving against improved",
    "exact leaves": "solver leaves against visits",
    "max^n": "max^n against visits",
    "the same, both sides": "max^n against visits, with 3x30",
    "batches of 1,024": "batch 1024 against base",
    "2,048 rounds at once": "2048 lanes against base",
    "replay ratio 1": "replay ratio 1 against base",
    "7 redeals": "7 redeals against base",
    "`--neurd-share 0.2`": "neurd 0.2 against base",
}
"""The comparison that a row of the page shows, by how the row begins."""


def test_what_a_change_brings_is_what_the_matches_gave() -> None:
    _, *rows = table("docs/how-it-learns.md", "What one change brings")
    assert len(rows) == len(ARMS)
    for (change, points, p, file), (begin, name) in zip(rows, ARMS.items(), strict=True):
        found = values(file.removesuffix(".json"))
        assert change.startswith(begin.strip("`"))
        corrected = found[f"{name}: p, corrected"]
        assert (points, p) == (f"{found[name]:.2f}", "<0.001" if corrected < 0.001 else f"{corrected:.2g}"), name


def test_rates_that_a_goal_would_need_follow_from_what_was_measured() -> None:
    text, found = words(TEXTS["docs/running.md"]), values("selfplay")
    evaluations = found["medium: steady distinct evaluations"] * 60 / found["medium: steady"]
    assert f"takes about {evaluations:,.0f} evaluations" in text
    assert f"at {6000 / 60 * evaluations / 2 * 7.4e-3:.0f} GFLOP/s" in text
    assert f"reaches {values('inference')['bf16 1024^3 matrix product, one thread']:.0f}" in text


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_results_are_of_a_commit_that_git_knows(name: str) -> None:
    kept = json.loads((RESULTS / f"{name}.json").read_text())
    variants = ("laptop", "hour", "installed", "pace", "more", "deals")
    assert name in (kept["benchmark"], *(f"{kept['benchmark']}_{how}" for how in variants)) and kept["results"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the commit of the figures cannot be looked up")
    shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], capture_output=True, text=True, cwd=ROOT)
    if shallow.stdout.strip() == "true":
        pytest.skip("a shallow clone: the commit of the figures may not be in it")
    commit = f"{kept['machine']['commit']}^{{commit}}"
    known = subprocess.run(["git", "cat-file", "-e", commit], capture_output=True, cwd=ROOT)
    assert known.returncode == 0, f"{name}.json is of commit {kept['machine']['commit']}, which git does not know"
