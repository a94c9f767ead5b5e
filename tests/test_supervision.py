"""Children that hang or keep dying, and Ctrl-C, seen through the command."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmzero import play_rounds
from shmzero.config import SearchConfig, SelfPlayConfig
from shmzero.evaluators import HashEvaluator
from shmzero.launch import MOST_DEATHS, Fleet
from shmzero.records import Records

LIGHT = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)


@contextmanager
def started(*arguments: object, path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A run of the command with `path` before its modules; killed at the end if it is still there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shmzero.selfplay", "--evaluator", "hash", "--preset", "light", "--json",
         *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env=dict(os.environ) if path is None else dict(os.environ, PYTHONPATH=os.pathsep.join([str(path), *sys.path])),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object]) -> None:
    """Until it holds; pytest's time limit is the watchdog."""
    while not condition():
        time.sleep(0.01)


def committed(folder: Path) -> int:
    try:
        return len(Records(folder))
    except Exception:  # not there yet
        return 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def test_fleet_inference_process_that_hangs_is_reported_replaced_and_costs_nothing() -> None:
    """Stopped, so alive and silent: its work is done again by its replacement, each unit once."""
    config = SelfPlayConfig(evaluator="hash", rounds=2000, preset="light", workers=2, stall_s=3)
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    stopped = None
    with Fleet(config, range(2000), 2000) as fleet:
        while not fleet.done:
            for unit, records in fleet.poll(0.02):
                assert unit not in found
                found[unit] = records
            said += fleet.events
            fleet.events.clear()
            if stopped is None and len(found) > 100:
                (stopped,) = fleet.pids()["servers"]
                os.kill(stopped, signal.SIGSTOP)
        assert fleet.restarts == 1 and fleet.pids()["servers"] != [stopped]
    assert "inference process 0 finished no batch for 3 s" in said
    assert "inference process 0 (cpu) ended with status -9 and is replaced: (it said nothing; exit status -9)" in said
    assert gone(stopped)
    assert [found[unit] for unit in range(2000)] == [[r] for r in play_rounds(HashEvaluator(), 2000, LIGHT)]


@pytest.mark.parametrize("module", ["worker", "inference"])
def test_selfplay_children_that_keep_dying_end_the_run_with_their_traceback(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        f"if 'shmzero.{module}' in sys.orig_argv:\n"
        "    from shmzero import _core\n"
        "    def broken(*arguments):\n"
        "        raise ZeroDivisionError('the kettle is empty')\n"
        "    _core.run_worker = _core.ServerPort = broken\n"
    )
    with started("--rounds", 50, "--out", tmp_path / "run", path=tmp_path) as process:
        out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert err.count("is replaced: ZeroDivisionError: the kettle is empty") == MOST_DEATHS - 1
    report = err[err.index("error: ") :]
    what = r"worker \d" if module == "worker" else r"inference process \d \(cpu\)"  # whichever died last
    assert re.match(rf"error: {what} ended with status 1, the {MOST_DEATHS}th death of a child within 60 s", report)
    assert "Traceback (most recent call last)" in report and report.endswith("the kettle is empty\n")
    assert not (tmp_path / "run").exists()
    assert not any(name.startswith(f"shmzero-{process.pid}-") for name in os.listdir("/dev/shm"))


def test_fleet_device_that_fails_once_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a batch, so that the failed batch's slot had answers before: none may be taken for it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'shmzero.inference' in sys.orig_argv:\n"
        "    from shmzero.errors import ModelFailed\n"
        "    from shmzero.evaluators import RowFunctionDevice\n"
        "    launch, launched = RowFunctionDevice.launch, []\n"
        "    def failing(self, stage, rows):\n"
        "        launched.append(rows)\n"
        f"        if len(launched) == 150 and not os.path.exists({str(tmp_path / 'failed')!r}):\n"
        f"            open({str(tmp_path / 'failed')!r}, 'w').close()\n"
        "            raise ModelFailed('the kettle is empty')\n"
        "        launch(self, stage, rows)\n"
        "    RowFunctionDevice.launch = failing\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    search = dict(determinizations=1, simulations=20)
    config = SelfPlayConfig(evaluator="hash", preset="light", workers=1, lanes=4, max_batch=1, **search)
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    with Fleet(config, range(60), 60) as fleet:
        while not fleet.done:
            found.update(fleet.poll(0.02))
            said += fleet.events
            fleet.events.clear()
        assert fleet.restarts == 1
    assert any("the kettle is empty" in line for line in said)
    expected = play_rounds(HashEvaluator(), 60, SearchConfig(**search, noise_fraction=LIGHT.noise_fraction))
    assert [found[unit] for unit in range(60)] == [[record] for record in expected]


def test_selfplay_killed_children_within_the_limit_do_not_end_the_run(tmp_path: Path) -> None:
    """Killed while they start, so that nothing is played before the last of them."""
    with started("--rounds", 500, "--workers", 1, "--out", tmp_path / "run") as process:
        for attempt in range(MOST_DEATHS - 1):
            wait_for(lambda: len(children(process.pid)) == 2 or process.poll() is not None)
            victim = children(process.pid)[attempt % 2]
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda pid=victim: pid not in children(process.pid))
        out, err = process.communicate()
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["rounds"] == 500 and summary["restarts"] == MOST_DEATHS - 1
    assert list(Records(tmp_path / "run")) == play_rounds(HashEvaluator(), 500, LIGHT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_selfplay_asked_to_stop_commits_and_a_rerun_completes(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    with started("--rounds", 200_000, "--out", folder) as process:
        wait_for(lambda: committed(folder) > 0)
        family = children(process.pid)
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err and "error" not in err
    summary = json.loads(out)
    assert not summary["complete"] and summary["rounds"] == len(Records(folder)) > 0
    assert all(map(gone, family))
    wanted = summary["rounds"] + 100
    with started("--rounds", wanted, "--out", folder) as process:
        out, _ = process.communicate()
    assert process.returncode == 0 and json.loads(out)["complete"]
    records = [record for record in Records(folder) if int.from_bytes(record[8:16], "little") < wanted]
    assert records[:500] == play_rounds(HashEvaluator(), min(wanted, 500), LIGHT) and len(set(records)) == wanted


def test_selfplay_second_ctrl_c_leaves_at_once_even_while_it_waits_for_the_disk(tmp_path: Path) -> None:
    """A lock on the file holds up the commit of the first; the second waits for nothing, and nothing is half written."""
    folder = tmp_path / "run"
    with started("--rounds", 200_000, "--out", folder) as process:
        wait_for(lambda: committed(folder) > 0)
        lock = sqlite3.connect(folder / "rounds.sqlite", isolation_level=None, timeout=60)
        lock.execute("BEGIN IMMEDIATE")
        family = children(process.pid)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: not catches(process.pid, signal.SIGINT))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGINT and out == ""
        wait_for(lambda: all(map(gone, family)))
        lock.execute("ROLLBACK")
        lock.close()
    kept = list(Records(folder))
    assert len(kept) == len(set(kept)) > 0
