"""Segments as files, and machines without /dev/shm, memfd or memory."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from shmzero import BatchedEvaluator, _core
from shmzero.errors import SegmentError
from shmzero.segment import create_private
from tests.service_programs import echo
from tests.services import ROOT, WIDTHS
from tests.test_bad_input import mounted
from tests.users import forbid_memfd

PLAY = [sys.executable, "-m", "shmzero.selfplay", "--evaluator", "hash", "--preset", "light", "--rounds", "5"]
BARE = 'mount -t tmpfs tmpfs /dev; : >/dev/null; cd "$1"; shift; "$@"'


def test_selfplay_without_dev_shm_plays(tmp_path: Path) -> None:
    done = mounted(BARE, ROOT, *PLAY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr


def test_private_segment_cannot_be_shrunk() -> None:
    """Whoever had it mapped would die of that."""
    memory = create_private(1, 1, 2, 4)
    with pytest.raises(PermissionError):
        os.truncate(memory.fd, 0)
    memory.close()


def test_private_segment_without_memfd_is_a_file_whose_name_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            forbid_memfd()
        except OSError:
            os._exit(2)
        try:
            with pytest.raises(OSError, match="not implemented"):
                _core.memory_file("nothing")
            memory = create_private(1, 1, 2, 4)
            place = os.readlink(f"/proc/self/fd/{memory.fd}")
            os._exit(0 if place.startswith("/dev/shm/shmzero-") and place.endswith("(deleted)") else 1)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 2:
        pytest.skip("this machine takes no system call filter, or is no x86-64")
    assert code == 0


def test_selfplay_on_a_python_without_memfd_create_plays(tmp_path: Path) -> None:
    """As conda's and uv's are."""
    (tmp_path / "sitecustomize.py").write_text("import os\nif hasattr(os, 'memfd_create'): del os.memfd_create\n")
    done = subprocess.run(
        [*PLAY, "--out", tmp_path / "run"], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_segment_larger_than_memory_is_refused_and_kills_nobody() -> None:
    """The room of a file in memory ends where the kernel begins to kill."""
    with pytest.raises(SegmentError, match="memory has no room for .* MB .*; .* MB are free: use fewer slots"):
        BatchedEvaluator(echo, *WIDTHS, slots=1024, rows_per_slot=1 << 22)


def test_segment_larger_than_a_control_group_allows_is_refused(tmp_path: Path) -> None:
    for root, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(root) / f"shmzero-test-{secrets.token_hex(4)}"
        if not os.access(f"{root}/cgroup.procs", os.W_OK):
            continue
        group.mkdir()
        try:
            (group / limit).write_text(str(300 << 20))
        except OSError:
            group.rmdir()
            continue
        code = (
            "from shmzero import BatchedEvaluator; from tests.service_programs import echo\n"
            "BatchedEvaluator(echo, 40, 7, 3, slots=1024, rows_per_slot=4096)"
        )
        try:
            done = subprocess.run(
                ["bash", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', group, sys.executable, "-c", code],
                capture_output=True, text=True, cwd=ROOT,
            )  # fmt: skip
        finally:
            group.rmdir()
        assert done.returncode == 1 and "SegmentError: memory has no room for" in done.stderr.splitlines()[-1]
        return
    pytest.skip("no control group with a limit of memory can be made here")
