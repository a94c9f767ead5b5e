"""Which tests run, and the steps of continuous integration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = "tests/game/test_bots.py"
SLOW = "test_uct_without_search_beyond_the_leaf_averages_the_solver_over_worlds"
LAST = "slow tests left out: 1; with them: env/run pytest --slow"


def collected(*words: str) -> list[str]:
    """What pytest prints that would run the tests of FILE."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip().splitlines()


def test_slow_tests_are_left_out_and_the_last_line_says_how_to_run_them() -> None:
    found = collected(FILE)
    assert found[-1] == LAST and not any(SLOW in line for line in found) and len(found) > 3


@pytest.mark.parametrize("words", [(FILE, "--slow"), (f"{FILE}::{SLOW}",)])
def test_slow_tests_run_where_they_are_asked_for(words: tuple[str, ...]) -> None:
    found = collected(*words)
    assert any(SLOW in line for line in found) and found[-1] != LAST


def test_ci_refuses_a_step_that_it_has_not_and_names_those_that_it_has() -> None:
    done = subprocess.run([ROOT / ".ci" / "run", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: .ci/run [STEP]")
    script = (ROOT / ".ci" / "run").read_text()
    assert done.stderr.split("steps: ")[1].split() == re.findall(r"^step_([\w-]+)\(\)", script, re.M)
