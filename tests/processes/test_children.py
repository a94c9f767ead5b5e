"""Children of any kind: started, talked to, watched, ended and cleared away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from shmzero.errors import StartError, WorkerDied
from shmzero.processes import deaths
from shmzero.processes.child import Child, start_child, starting
from shmzero.processes.deaths import Deaths
from shmzero.processes.line_socket import LineSocket
from shmzero.processes.messages import Kinds, Message, encode
from shmzero.processes.watch import Pulse, Watch
from tests.support.processes import wait_for


@dataclass(frozen=True)
class Note(Message):
    number: int
    text: str = ""


NOTES = Kinds(Note)


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules a child finds."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def started(code: str, held: ExitStack | None = None) -> Child:
    """A child of this code, which is its whole module."""
    folder = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
    (folder / "tried.py").write_text(code)
    with starting("worker 0") as stack:
        return start_child("worker 0", "tried", Note(0), [], 1, held or stack)
    raise AssertionError


def test_watch_counts_only_time_with_work_in_which_nothing_moved() -> None:
    watch = Watch()
    watch.look(1, has_work=True)
    assert watch.stuck_s(0.0) is None and not watch.moved
    watch.look(2, has_work=True)
    assert watch.moved and watch.still_s == 0
    wait_for(lambda: watch.look(2, has_work=True) or watch.stuck_s(0.05))
    assert watch.stuck_s(0.05) == 0.05
    watch.look(2, has_work=False)
    assert watch.stuck_s(0.0) is None


def test_pulse_of_a_child_is_seen_by_its_parent() -> None:
    parent = Pulse()
    theirs = Pulse(os.dup(parent.fd))
    theirs.beat()
    theirs.beat()
    assert parent.value == 2
    theirs.close()
    parent.close()


def test_deaths_in_a_row_with_nothing_done_in_between_end_the_run_however_long_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deaths, "DEATH_WINDOW_S", 0.0)
    counter = Deaths()

    def die() -> None:
        dead = started("pass")
        dead.process.wait()
        try:
            counter.count("worker 0", dead)
        finally:
            dead.close()

    for _ in range(deaths.MOST_DEATHS - 1):
        die()
    counter.went_on()
    for _ in range(deaths.MOST_DEATHS - 1):
        die()
    with pytest.raises(WorkerDied, match=f"the {deaths.MOST_DEATHS}th death of a child with nothing done in between"):
        die()


def test_child_that_cannot_be_started_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*how: object, **more: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", no_room)
    before = set(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(StartError, match="worker 0 cannot be started: Resource temporarily unavailable; "),
        starting("worker 0") as held,
    ):
        pulse = Pulse()
        held.callback(pulse.close)
        start_child("worker 0", "tried", Note(0), [], 1, held)
    assert set(os.listdir("/proc/self/fd")) == before


def test_child_handle_closes_what_was_held_for_it() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with ExitStack() as held, ExitStack() as theirs:
        lines, _ = LineSocket.pair(NOTES, held, theirs)
        child = started("import time; time.sleep(600)", held)
    assert child.is_running() and lines.fileno() >= 0
    child.kill()
    assert child.status == -signal.SIGKILL and set(os.listdir("/proc/self/fd")) == before


def test_child_that_is_stuck_is_killed_and_said_once() -> None:
    child = started("import time; time.sleep(600)")
    try:
        assert child.end_stuck(None) is None and child.is_running()
        assert child.end_stuck("did nothing") == "worker 0 did nothing" and child.stuck == "did nothing"
        assert child.end_stuck("did nothing") is None
        child.process.wait()
        assert child.last_words() == f"(it said nothing; exit status -{signal.SIGKILL:d})"
    finally:
        child.kill()


def test_last_words_are_what_a_child_wrote_to_standard_error() -> None:
    child = started("raise ZeroDivisionError('the kettle is empty')")
    child.process.wait()
    assert child.last_words().endswith("ZeroDivisionError: the kettle is empty") and child.status == 1
    child.close()


@pytest.fixture
def ends() -> tuple[LineSocket[Note], socket.socket]:
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        yield LineSocket(ours.detach(), NOTES), theirs


def test_messages_arrive_whole_however_they_are_cut(ends: tuple[LineSocket[Note], socket.socket]) -> None:
    lines, other = ends
    found = []
    for byte in encode(Note(1)) + encode(Note(2, "\n")) + b'{"c"':
        other.sendall(bytes([byte]))
        found += lines.receive()
    assert found == [Note(1), Note(2, "\n")] and not lines.closed
    other.close()
    assert lines.receive() == [] and lines.closed


def test_posted_messages_wait_where_there_is_no_room(ends: tuple[LineSocket[Note], socket.socket]) -> None:
    lines, other = ends
    for number in range(2000):
        lines.post(Note(number, "x" * 1000))
    reader = LineSocket(other.detach(), NOTES)
    found: list[Note] = []
    while len(found) < 2000:
        found += reader.receive()
        lines.flush()
    assert [note.number for note in found] == list(range(2000))
    reader.close()
    lines.post(Note(0))
    assert lines.closed
    lines.send(Note(0))  # lost as well
