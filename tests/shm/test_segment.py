"""Segments as files: whose they are, what a start removes, and machines without /dev/shm, memfd or memory."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shmzero.inference  # noqa: F401 before a child that may not read it is forked
from shmzero import BatchedEvaluator, Client, ConfigError, InferenceServer, _core
from shmzero.errors import SegmentError
from shmzero.shm.names import FOLDER, inode_of, sweep_leftovers, unlink_file
from shmzero.shm.segment import create_private
from tests.cli.test_bad_input import last_line, mounted
from tests.support.service_programs import check, echo, rows
from tests.support.services import ROOT, WIDTHS, start_server
from tests.support.users import ALICE, MALLORY, acting_as, forbid_memfd

SIZES = (1, 32, 1, 16, *WIDTHS, "float32")


def file_of(name: str) -> Path:
    return Path(FOLDER) / f"shmzero-{name}"


@pytest.fixture
def squatted(name: str) -> Iterator[str]:
    """A service name whose file is in the way; it is gone after the test."""
    yield name
    path = file_of(name)
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


# --- other users --------------------------------------------------------------------------------------------


def open_to_all(name: str) -> Iterator[object]:
    """A service of whoever calls this, whose file everybody may open; yields its rows when it is asked again."""
    with InferenceServer(echo, *WIDTHS, name=name, slots=32, rows_per_slot=16) as server:
        file_of(name).chmod(0o666)
        yield "serving"
        while True:
            yield server.stats()["rows"]


def asking(name: str) -> Iterator[object]:
    """Rows sent to a service of that name."""
    yield "ready"
    asked = rows(np.random.default_rng(1), 4)
    client = Client(name)
    yield client.evaluate_many(*asked, timeout=60.0)


@pytest.mark.parametrize("user", [ALICE, 0])
def test_client_sends_no_rows_to_another_users_service(squatted: str, user: int) -> None:
    """It would read them, and answer what it likes."""
    with (
        acting_as(MALLORY, lambda: open_to_all(squatted)) as mallory,
        acting_as(user, lambda: asking(squatted)) as client,
    ):
        assert mallory() == "serving" and client() == "ready"
        with pytest.raises(SegmentError, match=f"belongs to another user, .*{MALLORY}.*; use another service name"):
            client()
        assert mallory() == 0


def test_client_sends_no_rows_to_a_service_that_others_may_open(name: str) -> None:
    with InferenceServer(echo, *WIDTHS, name=name) as server:
        file_of(name).chmod(0o640)
        with pytest.raises(SegmentError, match=r"may be opened by other users \(its mode is 0640\)"):
            server.client()
        file_of(name).chmod(0o600)


def squatting(name: str) -> Iterator[object]:
    """What a server that died would have left, of somebody else; then it shrinks."""
    fd = os.open(file_of(name), os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.fchmod(fd, 0o666)
    os.truncate(fd, _core.segment_bytes(*SIZES))
    _core.Segment.create(fd, *SIZES)
    yield "left"
    os.truncate(fd, 0)
    yield "shrunk"


def serving(name: str) -> Iterator[object]:
    try:
        server = InferenceServer(echo, *WIDTHS, name=name, slots=32, rows_per_slot=16)
    except ConfigError as error:
        yield str(error)
    else:
        yield "adopted"
        yield server.stats()["rows"]


def test_server_adopts_no_segment_of_another_user(squatted: str) -> None:
    """He could shrink it, of which the server dies, read the rows and forge requests."""
    with (
        acting_as(MALLORY, lambda: squatting(squatted)) as mallory,
        acting_as(ALICE, lambda: serving(squatted)) as alice,
    ):
        assert mallory() == "left"
        said = alice()
        assert mallory() == "shrunk"
        if said == "adopted":
            alice()
        assert f"service '{squatted}' cannot be served: /dev/shm/shmzero-{squatted} belongs to another user" in str(
            said
        )
        assert "use another service name" in str(said) and file_of(squatted).stat().st_uid == MALLORY


def test_segment_is_its_users_alone_under_any_umask(name: str) -> None:
    for mask in (0, 0o777):
        before = os.umask(mask)
        try:
            server = InferenceServer(echo, *WIDTHS, name=name)
        finally:
            os.umask(before)
        with server:
            assert file_of(name).stat().st_mode & 0o777 == 0o600
            assert server.client().evaluate(*(each[0] for each in rows(np.random.default_rng(1), 1)))[0].shape == (7,)


def leaving(path: Path) -> Iterator[object]:
    path.touch()
    path.chmod(0o666)
    yield "left"


def starting() -> Iterator[object]:
    with BatchedEvaluator(echo, *WIDTHS) as evaluator:
        yield evaluator.evaluate_many(*rows(np.random.default_rng(1), 4))[0].shape


@pytest.mark.parametrize("user", [ALICE, 0])
def test_start_passes_over_another_users_leftover(user: int) -> None:
    left = file_of(f"4194303-{secrets.token_hex(8)}")
    try:
        with acting_as(MALLORY, lambda: leaving(left)) as mallory, acting_as(user, starting) as started:
            assert mallory() == "left" and started() == (4, 7)
            assert left.exists()
    finally:
        left.unlink(missing_ok=True)


ODD = {
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path, 0o600),
    "a symbolic link": lambda path: path.symlink_to("/nowhere"),
}


@pytest.mark.parametrize("kind", ODD)
def test_service_name_that_is_no_file_is_refused_with_one_line(squatted: str, kind: str) -> None:
    ODD[kind](file_of(squatted))
    with pytest.raises(ConfigError, match=f"{squatted} is not a regular file; remove it, or use another service name"):
        InferenceServer(echo, *WIDTHS, name=squatted)
    with pytest.raises(SegmentError, match=f"{squatted} is not a regular file"):
        Client(squatted, connect_timeout=0.0)
    assert os.path.lexists(file_of(squatted))


@pytest.mark.parametrize("kind", ODD)
def test_start_passes_over_leftovers_that_are_no_files(kind: str) -> None:
    left = file_of(f"4194303-{secrets.token_hex(8)}")
    strange = Path(os.fsdecode(os.fsencode(left) + b"\xff"))
    ODD[kind](left)
    strange.touch(0o600)
    try:
        create_private(1, 1, 2, 4).close()
        assert os.path.lexists(left) and strange.exists()
    finally:
        strange.unlink()
        left.rmdir() if kind == "a folder" else left.unlink()


# --- one's own leftovers ------------------------------------------------------------------------------------


def test_start_leaves_another_dead_service_to_its_successor(name: str, rng: np.random.Generator) -> None:
    """Its version of weights goes on, and so do its requests."""
    server = start_server(name)
    asked = rows(rng, 4)
    with Client(name) as client:
        check(*asked, *client.evaluate_many(*asked))
        assert client.version == 0
        server.kill()
        server.communicate()
        with InferenceServer(echo, *WIDTHS, name=f"{name}-other"), BatchedEvaluator(echo, *WIDTHS):
            pass
        with InferenceServer(echo, *WIDTHS, name=name, slots=32, rows_per_slot=16) as successor:
            check(*asked, *client.evaluate_many(*asked))
            assert client.version == successor.version == 1


def test_start_removes_what_a_killed_server_without_a_name_left() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            InferenceServer(echo, *WIDTHS)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    sweep_leftovers()
    assert not [path for path in os.listdir(FOLDER) if f"-{pid}-" in path]


def test_server_whose_name_was_taken_leaves_its_successors_file(name: str, rng: np.random.Generator) -> None:
    """Somebody removed the file, and another serves under its name."""
    first = InferenceServer(echo, *WIDTHS, name=name)
    file_of(name).unlink()
    with InferenceServer(echo, *WIDTHS, name=name) as second:
        first.close()
        asked = rows(rng, 4)
        check(*asked, *Client(second.name, connect_timeout=0.0).evaluate_many(*asked))


def test_service_served_twice_by_one_process_says_how_to_end_it(name: str) -> None:
    first = InferenceServer(echo, *WIDTHS, name=name)
    with pytest.raises(
        ConfigError, match=f"by process {os.getpid()}, which is this one; close\\(\\) that server first"
    ):
        InferenceServer(echo, *WIDTHS, name=name)
    first.close()
    InferenceServer(echo, *WIDTHS, name=name).close()


# --- machines without it ------------------------------------------------------------------------------------

SERVE = [sys.executable, "-m", "shmzero.serve", "--name", "mine", "--model", "tests.support.service_programs:make_echo",
         "--state-dim", "40", "--action-dim", "7", "--value-dim", "3"]  # fmt: skip
PLAY = [sys.executable, "-m", "shmzero.selfplay", "--evaluator", "hash", "--preset", "light", "--rounds", "5"]
ASK = [sys.executable, "-c", "import shmzero; shmzero.Client('mine')"]
BARE = 'mount -t tmpfs tmpfs /dev; : >/dev/null; cd "$1"; shift; "$@"'
READ_ONLY = 'mount -t tmpfs -o ro tmpfs /dev/shm; cd "$1"; shift; "$@"'


def test_service_without_dev_shm_ends_with_one_line() -> None:
    assert "there is no /dev/shm" in last_line(mounted(BARE, ROOT, *SERVE), 1)
    assert "SegmentError: there is no /dev/shm" in mounted(BARE, ROOT, *ASK).stderr.splitlines()[-1]


def test_service_in_a_read_only_dev_shm_ends_with_one_line() -> None:
    line = last_line(mounted(READ_ONLY, ROOT, *SERVE), 1)
    assert "/dev/shm/shmzero-mine cannot be created" in line and "Read-only file system" in line


def test_service_in_a_full_dev_shm_says_what_dead_ones_hold() -> None:
    full = 'mount -t tmpfs -o size=4m tmpfs /dev/shm; umask 077; head -c 2M /dev/zero >/dev/shm/shmzero-old; cd "$1"; shift; "$@"'
    line = last_line(mounted(full, ROOT, *SERVE), 1)
    assert "/dev/shm has no room for 3.7 MB" in line and "dead services left 2.1 MB: rm /dev/shm/shmzero-old: " in line


def test_selfplay_without_dev_shm_plays(tmp_path: Path) -> None:
    done = mounted(BARE, ROOT, *PLAY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr


def test_server_whose_file_is_replaced_all_the_time_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds the name and it is another file at every look."""
    monkeypatch.setattr("shmzero.shm.service_segment.inode_of", lambda path: 1)
    with pytest.raises(SegmentError, match="is replaced all the time"):
        InferenceServer(echo, *WIDTHS, name=name)
    file_of(name).unlink(missing_ok=True)


def test_name_that_cannot_be_looked_at_is_not_taken_for_gone(
    name: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server neither calls its own file replaced nor leaves it behind in silence; a client waits on."""
    no_folder = tmp_path / "file"
    no_folder.touch()
    asked = rows(rng, 3)
    with InferenceServer(echo, *WIDTHS, name=name) as server, Client(name) as client:
        client.evaluate_many(*asked)
        connection = client._link.connection
        assert connection is not None
        with monkeypatch.context() as patched:
            patched.setattr("shmzero.shm.names.FOLDER", str(no_folder))
            with pytest.raises(SegmentError, match=f"{no_folder}/shmzero-{name} cannot be looked at: Not a directory"):
                inode_of(client._link.path)
            with pytest.raises(SegmentError, match="cannot be looked at"):
                unlink_file(server._memory.fd, client._link.path)
            patched.setattr(type(connection), "is_served", False)
            assert not client._link.is_lost(connection)
        assert file_of(name).exists()
        check(*asked, *client.evaluate_many(*asked))
    assert inode_of(client._link.path) == 0


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
    without = (
        "import os, sys; vars(os).pop('memfd_create', None); from shmzero import selfplay; sys.exit(selfplay.main())"
    )
    command = [sys.executable, "-c", without, *PLAY[3:], "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_segment_larger_than_memory_is_refused_and_kills_nobody() -> None:
    """The room of a file in memory ends where the kernel begins to kill."""
    with pytest.raises(SegmentError, match="memory has no room for .* MB .*; .* MB are free: use fewer slots"):
        BatchedEvaluator(echo, 4000, *WIDTHS[1:], slots=_core.MAX_WORKERS, rows_per_slot=1 << 20)


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
            "from shmzero import BatchedEvaluator; from tests.support.service_programs import echo\n"
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
