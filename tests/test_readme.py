"""What the README shows runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NETS
from shmzero.runs.checkpoints import numbered_path
from shmzero.runs.folder import CHECKPOINT_FOLDER

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_example_runs(number: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(EXAMPLES[number])
    if "runs/smoke" in EXAMPLES[number]:  # what the training before it would have left
        checkpoints = tmp_path / "runs/smoke" / CHECKPOINT_FOLDER
        checkpoints.mkdir(parents=True)
        save_checkpoint(BlobNet(NETS["quick"]), numbered_path(checkpoints, 1))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr


def test_readme_worked_score_is_what_the_rules_say() -> None:
    from tests.support.cases import round_of

    r = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, "1 0 2 | SA S5 H2 | CA C2 C9")
    assert r.scores() == [0, 10, 12]


README = (ROOT / "README.md").read_text()


def table(section: str, number: int = 0) -> list[list[str]]:
    """Cells of the rows of a section's table, its head included."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [part for part in text.split("\n\n") if part.strip().startswith("|")][number].strip().splitlines()
    rows = [line[1:-1].split("|") for line in lines if "---" not in line]
    return [[cell.strip(" `") for cell in row] for row in rows]


def results(name: str) -> dict:
    return json.loads((ROOT / "tools" / "results" / f"{name}.json").read_text())


COMMANDS = sorted({row[-1].split()[0] for section in ("Figures", "Strength") for row in table(section)[1:]})
FILES = sorted(path.stem for path in (ROOT / "tools" / "results").glob("*.json"))


def test_readme_figures_have_results() -> None:
    assert set(COMMANDS) <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_results_are_of_a_commit_that_git_knows(name: str) -> None:
    kept = results(name)
    assert (
        name
        in (
            kept["benchmark"],
            *(f"{kept['benchmark']}_{how}" for how in ("laptop", "hour", "installed", "pace", "more", "deals")),
        )
        and kept["results"]
    )
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the commit of the figures cannot be looked up")
    shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], capture_output=True, text=True, cwd=ROOT)
    if shallow.stdout.strip() == "true":
        pytest.skip("a shallow clone: the commit of the figures may not be in it")
    commit = f"{kept['machine']['commit']}^{{commit}}"
    known = subprocess.run(["git", "cat-file", "-e", commit], capture_output=True, cwd=ROOT)
    assert known.returncode == 0, f"{name}.json is of commit {kept['machine']['commit']}, which git does not know"


def test_readme_strength_is_what_the_matches_gave() -> None:
    (_, _, *opponents, _), *rows = table("Strength")
    assert len(opponents) == 5 and len(rows) == 6
    kept: list[dict] = []
    for trained, plays, *figures, command in rows:
        if trained:
            name = {"2": "training", "10": "training_laptop", "60": "training_hour"}[re.match(r"\d+", trained)[0]]
            kept = results(name)["results"]
        assert command == ("training" if name == "training" else "training --run")
        values = {result["name"]: result["value"] for result in kept}
        how = "policy" if plays == "its policy" else "3x30"
        for opponent, figure in zip(opponents, figures, strict=True):
            if figure:
                names = [f"{how} against {opponent.replace('own ', '')}, {mode}" for mode in
                         ("one against the others", "the others against one")]  # fmt: skip
                assert figure == "; ".join(f"{values[name]:.2f}" for name in names), (trained, plays, opponent)


def test_readme_one_card_figures_are_what_exact_play_gave() -> None:
    values = {result["name"]: result["value"] for result in results("exact_play")["results"]}
    mean, worst = (
        max(v for name, v in values.items() if name.endswith(what)) for what in (": mean loss", ": worst hand")
    )
    text = " ".join(README.split())
    assert f"at most {mean:.3f} below the best response, {worst:.2f} with the worst hand" in text
    agents = [v for name, v in values.items() if name.endswith("the agent bids 1 from")]
    strong = [v for name, v in values.items() if name.startswith("ace, king, queen of trumps")]
    assert strong == [1, 1, 1, 1] and "ace, king, queen of trumps in five cards: bid 2 above 0" in text
    assert agents == ["2", "4", "6", "8"] and "first bids of 3 to 6 players change at the right rank" in text


def test_readme_ablation_is_what_the_matches_gave() -> None:
    values = {result["name"]: result["value"] for result in results("ablate_training")["results"]}
    (_, *changes), *rows = table("Strength", 1)
    assert [how for how, *_ in rows] == ["its policy", "with 3 x 30"] and len(changes) >= 9
    for (_, *cells), way in zip(rows, ("", ", with 3x30"), strict=True):
        for change, cell in zip(changes, cells, strict=True):
            arm, _, against = change.partition(" against ")
            name = f"{arm} against {against or 'base'}{way}"
            if not cell:
                assert name not in values
                continue
            p = values[f"{name}: p, corrected"]
            assert cell == f"{values[name]:.2f}; " + ("<0.001" if p < 0.001 else f"{p:.2g}"), name
    more = {result["name"]: result["value"] for result in results("ablate_training_more")["results"]}
    for name in ("max^n against visits", "max^n against visits, with 3x30"):
        p = more[f"{name}: p, corrected"]
        assert f"{more[name]:.2f} ({'<0.001' if p < 0.001 else f'{p:.2g}'})" in " ".join(README.split()), name
    deals = {result["name"]: result["value"] for result in results("ablate_training_deals")["results"]}
    for arm in ("7 redeals", "neurd 0.2"):
        found = deals[f"{arm} against base"], deals[f"{arm} against base: p, corrected"]
        assert f"{arm} {found[0]:.2f} ({found[1]:.2g})" in " ".join(README.split()), arm
    since = {result["name"]: result["value"] for result in results("ablate_training_pace")["results"]}
    for arm, words in (
        ("batch 1024", "batches of 1,024"),
        ("2048 lanes", "2,048 lanes"),
        ("replay ratio 1", "replay ratio 1"),
    ):
        found = since[f"{arm} against base"], since[f"{arm} against base: p, corrected"]
        assert f"{words} {found[0]:.2f} ({found[1]:.2g})" in " ".join(README.split()), arm
