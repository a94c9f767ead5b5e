"""Commands whose standard files are closed, full or on a terminal that goes away: nothing is lost, and the exit
status is the work's."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

from shmzero import Client, play_rounds
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.runs.records import Records
from tests.support.processes import committed, wait_for
from tests.support.service_programs import check, rows
from tests.support.services import ROOT, WIDTHS, started

CLOSED = ("<&-", ">&-", "2>&-", "<&- >&- 2>&-")
SELFPLAY = (sys.executable, "-m", "shmzero.selfplay", "--evaluator", "hash", "--preset", "light", "--json")
SERVE = (
    sys.executable, "-m", "shmzero.serve", "--model", "tests.support.service_programs:make_echo", "--state-dim", WIDTHS[0],
    "--action-dim", WIDTHS[1], "--value-dim", WIDTHS[2],
)  # fmt: skip


def without(files: str, *command: object) -> list[str]:
    """A command that is started with these files closed."""
    return ["bash", "-c", f'exec "$@" {files}', "bash", *map(str, command)]


@pytest.mark.parametrize("files", CLOSED)
def test_selfplay_with_closed_files_records_all_and_says_how_it_ended(tmp_path: Path, files: str) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(without(files, *SELFPLAY, "--rounds", 20, "--out", folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    search = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)
    assert list(Records(folder)) == play_rounds(HashEvaluator(), 20, search)
    assert (done.stdout == "") == (">&-" in files.split()) and "Traceback" not in done.stderr
    assert subprocess.run(without(files, *SELFPLAY, "--rounds", 0), capture_output=True).returncode == 2


@pytest.mark.parametrize("files", CLOSED)
def test_serve_with_closed_files_answers(name: str, files: str) -> None:
    """What it says does not get into its shared memory, whose file would have the number of a closed one."""
    server = subprocess.Popen(without(files, *SERVE, "--name", name, "--stats"), cwd=ROOT, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    started.append(server)
    rng = np.random.default_rng(1)
    with Client(name, connect_timeout=60) as client:
        for n in range(1, 20):
            check(*(asked := rows(rng, n)), *client.evaluate_many(*asked))
    targets = [os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in (0, 1, 2)]
    assert not any("shmzero" in target for target in targets), targets
    server.terminate()
    server.communicate()
    assert server.returncode == 0


@pytest.mark.parametrize("files", CLOSED)
def test_env_run_opens_closed_files(files: str) -> None:
    look = "readlink /proc/$$/fd/[0-2] >&3; exit 7"
    with open(os.devnull, "rb+") as null:
        command = without(f"3>&1 {files}", ROOT / "env" / "run", "bash", "-c", look)
        done = subprocess.run(command, stdin=null, stdout=subprocess.PIPE, stderr=null, text=True)
    assert done.returncode == 7
    assert done.stdout.count("/dev/null\n") == 2 + (">&-" in files.split()), done.stdout


def test_selfplay_with_a_full_standard_error_records_all(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*SELFPLAY, "--rounds", "20", "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=full
        )
    assert done.returncode == 0 and json.loads(done.stdout)["rounds"] == len(Records(tmp_path)) == 20


def test_selfplay_commits_when_its_terminal_goes_away(tmp_path: Path) -> None:
    """Which sends SIGHUP, and every further line fails."""
    ours, theirs = pty.openpty()

    def on_terminal() -> None:
        os.setsid()
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)

    process = subprocess.Popen([*SELFPLAY, "--rounds", "200000", "--out", str(tmp_path)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=theirs, text=True, preexec_fn=on_terminal)  # fmt: skip
    os.close(theirs)
    wait_for(lambda: committed(tmp_path) > 0, process)
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 130 and json.loads(out)["rounds"] == len(Records(tmp_path))
