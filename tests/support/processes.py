"""Commands as processes: started, watched, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shmzero.runs.records import Records

_started: list[subprocess.Popen[str]] = []


def start(
    module: str,
    *arguments: object,
    path: Path | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """`python -m module` in folder `cwd`, with `path` before its modules and `environment` beside ours.

    It is killed after the test if it is still there.
    """
    paths = {} if path is None else {"PYTHONPATH": os.pathsep.join([str(path), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=cwd,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | paths | dict(environment or {}),
        # A shell has its background jobs ignore Ctrl-C, and with them these tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    _started.append(process)
    return process


def kill_started() -> None:
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Until it holds; fails where `process` ends first. pytest's time limit is the watchdog."""
    while not condition():
        assert process is None or process.poll() is None or condition(), process.communicate()
        time.sleep(0.01)


def committed(folder: Path) -> int:
    """Rounds in a run folder so far."""
    try:
        with Records(folder) as records:
            return len(records)
    except Exception:  # not there yet
        return 0


def children_of(pid: int) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(entry.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
