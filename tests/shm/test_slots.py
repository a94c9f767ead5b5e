"""The slot protocol from Python: late, out of order and never answered requests, deaths, headers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shmzero import _core
from shmzero.errors import SegmentCorrupt, SegmentError
from shmzero.shm.segment import create_private
from tests.support.services import worker_in_thread


class Pair:
    """A segment with one server's port and its workers', and arrays to gather into."""

    def __init__(self, workers: int = 1, slots: int = 2, rows: int = 4, epoch: int = 1) -> None:
        self.memory = create_private(1, workers, slots, rows)
        self.segment = self.memory.segment
        self.workers = [_core.WorkerPort(self.segment, w) for w in range(workers)]
        self.states = np.zeros((16, 256), np.float16)
        self.masks = np.zeros(16, np.uint64)
        self.restart(epoch)

    def restart(self, epoch: int) -> None:
        self.server = _core.ServerPort(self.segment, 0, epoch)

    def send(self, worker: int, slot: int, *numbers: float) -> None:
        assert self.workers[worker].begin(slot)
        states, masks, _, _ = _core.slot_views(self.segment, worker, slot)
        for row, number in enumerate(numbers):
            states[row] = number
            masks[row, 0] = int(number)
        self.workers[worker].publish(slot, len(numbers))

    def gather(self, limit: int = 16, **options: object) -> tuple[int, list[float]]:
        batch, rows = self.server.gather(
            self.states, self.masks, limit, **{"timeout_ms": 0.0, "wait_ms": 0.0} | options
        )
        return batch, self.states[:rows, 0].tolist()

    def answer(self, batch: int, numbers: list[float], version: int = 1) -> None:
        policies = np.repeat(np.asarray(numbers, np.float32)[:, None], 52, axis=1)
        self.server.scatter(batch, policies, np.asarray(numbers, np.float32)[:, None] + 0.5, version)

    def answers(self, worker: int, slot: int, rows: int) -> list[float]:
        _, _, policies, values = _core.slot_views(self.segment, worker, slot)
        assert np.array_equal(values[:rows, 0], policies[:rows, 51] + 0.5)
        return policies[:rows, 51].tolist()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair(workers=2)
    yield made
    made.memory.close()


def test_slot_request_comes_back_in_place(pair: Pair) -> None:
    pair.send(0, 0, 3, 4)
    batch, rows = pair.gather()
    assert rows == [3, 4]
    assert not pair.workers[0].answered(0)
    pair.answer(batch, rows, version=9)
    assert pair.workers[0].answered(0)
    assert pair.answers(0, 0, 2) == [3, 4] and pair.workers[0].version(0) == 9


def test_slots_of_a_worker_are_served_by_turns_and_only_a_dead_servers_are_ready_again() -> None:
    """Two servers, three workers with three slots: slot i of all is server i mod 2's."""
    memory = create_private(2, 3, 3, 4)
    segment = memory.segment
    servers = [_core.ServerPort(segment, s, 1) for s in (0, 1)]
    states, masks = np.zeros((16, 256), np.float16), np.zeros(16, np.uint64)
    workers = [_core.WorkerPort(segment, w) for w in range(3)]
    for number in range(9):
        worker, slot = divmod(number, 3)
        assert workers[worker].begin(slot)
        _core.slot_views(segment, worker, slot)[0][0] = number
        workers[worker].publish(slot, 1)
    for server in (0, 1):
        _, rows = servers[server].gather(states, masks, 16, timeout_ms=0.0, wait_ms=0.0)
        assert states[:rows, 0].tolist() == list(range(server, 9, 2))
    segment.reclaim_server(1)
    _, rows = servers[0].gather(states, masks, 16, timeout_ms=0.0, wait_ms=0.0)
    assert rows == 0  # what server 0 has taken is its own, and the others' slots are not for it
    _, rows = _core.ServerPort(segment, 1, 2).gather(states, masks, 16, timeout_ms=0.0, wait_ms=0.0)
    assert states[:rows, 0].tolist() == [1, 3, 5, 7]
    del servers, workers
    memory.close()


def test_slot_batches_answered_out_of_order_reach_their_own_rows(pair: Pair) -> None:
    pair.send(0, 0, 1)
    first = pair.gather()
    pair.send(1, 1, 2)
    second = pair.gather()
    pair.answer(*second)
    assert pair.workers[1].answered(1) and not pair.workers[0].answered(0)
    pair.answer(*first)
    assert pair.answers(0, 0, 1) == [1] and pair.answers(1, 1, 1) == [2]


def test_slot_larger_than_the_limit_is_served_in_pieces_with_the_oldest_version(pair: Pair) -> None:
    pair.send(0, 0, 1, 2, 3)
    first = pair.gather(limit=2)
    assert first[1] == [1, 2]
    pair.answer(*first, version=5)
    assert not pair.workers[0].answered(0)
    second = pair.gather(limit=2)
    pair.answer(*second, version=6)
    assert pair.answers(0, 0, 3) == [1, 2, 3] and pair.workers[0].version(0) == 5


def test_gather_oldest_request_first(pair: Pair) -> None:
    pair.send(1, 1, 7)
    pair.send(0, 0, 8)
    assert pair.gather()[1] == [7, 8]


def test_gather_waits_while_somebody_fills_and_fires_when_nobody_does(pair: Pair) -> None:
    pair.send(0, 0, 1)
    assert pair.workers[1].begin(0)
    assert pair.gather(timeout_ms=1e6)[1] == []
    pair.workers[1].publish(0, 0)
    assert pair.gather(timeout_ms=1e6)[1] == [1]


def test_gather_full_batch_fires_although_somebody_fills(pair: Pair) -> None:
    pair.send(0, 0, 1, 2)
    assert pair.workers[1].begin(0)
    assert pair.gather(limit=2, timeout_ms=1e6)[1] == [1, 2]


def test_gather_time_out_fires_unless_another_batch_computes(pair: Pair) -> None:
    pair.send(0, 0, 1)
    assert pair.workers[1].begin(0)
    assert pair.gather(timeout_ms=0.0, other_in_flight=True)[1] == []
    assert pair.gather(timeout_ms=0.0)[1] == [1]


def test_cancel_before_and_after_the_sweep_frees_the_slot_once(pair: Pair) -> None:
    pair.send(0, 0, 1)
    pair.workers[0].cancel(0)
    assert pair.segment.slot_states(0)[0] == "free" and pair.gather()[1] == []
    pair.send(0, 0, 2)
    batch, rows = pair.gather()
    pair.workers[0].cancel(0)
    assert pair.segment.slot_states(0)[0] == "orphaned" and not pair.workers[0].begin(0)
    pair.answer(batch, rows)
    assert pair.segment.slot_states(0)[0] == "free" and pair.workers[0].generation(0) == 2


def test_reclaim_dead_worker_frees_what_it_held_and_leaves_the_servers_slot_to_it(pair: Pair) -> None:
    pair.send(0, 0, 1)
    batch = pair.gather()
    pair.send(0, 1, 2)
    pair.segment.reclaim_worker(0)
    assert pair.segment.slot_states(0) == ["orphaned", "free"]
    pair.answer(*batch)
    assert pair.segment.slot_states(0) == ["free", "free"]


def test_reclaim_dead_server_runs_its_requests_again(pair: Pair) -> None:
    pair.send(0, 0, 1)
    pair.gather()
    pair.send(1, 0, 2)
    pair.gather()
    pair.workers[1].cancel(0)
    pair.segment.reclaim_server(0)
    assert pair.segment.slot_states(0)[0] == "ready" and pair.segment.slot_states(1)[0] == "free"
    pair.restart(epoch=2)
    pair.answer(*pair.gather())
    assert pair.answers(0, 0, 1) == [1]


def test_worker_whose_slot_comes_back_failed_ends_with_the_message() -> None:
    """It would go on with the answers of the request before."""
    memory = create_private(1, 1, 1, 64)
    server = _core.ServerPort(memory.segment, 0, 1)
    states, masks = np.zeros((64, 256), np.float16), np.zeros(64, np.uint64)
    with worker_in_thread(memory.segment) as worker:
        rows = 0
        while rows == 0 and not worker.done():
            batch, rows = server.gather(states, masks, 64)
        server.fail(batch, "the kettle is empty", 1)
        with pytest.raises(RuntimeError, match="slot 0 was answered with a failure: the kettle is empty"):
            worker.result()
    memory.close()


@pytest.mark.parametrize("timeout_ms", [-math.inf, -1.0, 0.0, 1e300, math.inf])
def test_wait_for_an_answer_that_never_comes_ends_whatever_its_time_out(pair: Pair, timeout_ms: float) -> None:
    """So that whoever waits can look whether its server is still there."""
    port = _core.RequestPort.claim(pair.segment, _core.own_identity())
    assert port is not None
    assert port.call(np.zeros(256, np.float16), np.ones(52, np.bool_), timeout_ms, 0.0) is None
    assert not port.wait(timeout_ms, 0.0)
    port.close()


def test_scatter_of_an_unknown_batch_raises(pair: Pair) -> None:
    with pytest.raises(ValueError, match="batch 99 is none that was gathered"):
        pair.answer(99, [1.0])


def test_create_private_leaves_no_name_behind() -> None:
    memory = create_private(1, 1, 2, 4)
    assert not [name for name in os.listdir("/dev/shm") if f"-{os.getpid()}-" in name]
    memory.close()


def test_create_private_has_no_name_any_more_when_it_takes_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill while the kernel clears the pages leaves nothing."""
    seen = []
    allocate = os.posix_fallocate

    def look_and_allocate(*arguments: int) -> None:
        seen.append([name for name in os.listdir("/dev/shm") if name.startswith(f"shmzero-{os.getpid()}-")])
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", look_and_allocate)
    create_private(1, 1, 2, 4).close()
    assert seen == [[]]


def test_create_private_removes_what_a_killed_creator_left_and_nothing_else() -> None:
    left, service = (
        Path("/dev/shm") / f"shmzero-{name}" for name in ("4194303-0123456789abcdef", "test-waits-for-a-successor")
    )
    try:
        left.touch(0o600)
        service.touch(0o600)
        create_private(1, 1, 2, 4).close()
        assert not left.exists() and service.exists()
    finally:
        left.unlink(missing_ok=True)
        service.unlink(missing_ok=True)


def test_create_private_more_than_there_is_raises_segment_error() -> None:
    with pytest.raises(SegmentError, match="no room"):
        create_private(1, 1024, 8, 1 << 22)


@pytest.mark.parametrize("at", [0, 8, 12, 16, 24, 40, 48, 56, 60, 64, 68, 72, 76, 80, 84])
def test_attach_corrupt_header_raises_segment_corrupt(at: int) -> None:
    memory = create_private(1, 1, 2, 4)
    fd = os.memfd_create("corrupt")
    data = bytearray(os.pread(memory.fd, memory.segment.bytes, 0))
    data[at] ^= 0x55
    os.pwrite(fd, bytes(data), 0)
    with pytest.raises(SegmentCorrupt):
        _core.Segment.attach(fd)
    os.close(fd)
    memory.close()


def test_attach_random_and_truncated_headers_raise_segment_corrupt() -> None:
    rng = np.random.default_rng(0)
    memory = create_private(1, 1, 2, 4)
    whole = os.pread(memory.fd, memory.segment.bytes, 0)
    for case in range(500):
        fd = os.memfd_create("fuzz")
        if case % 2:
            data = whole[: int(rng.integers(0, len(whole)))]
        else:
            head = bytearray(whole[:128])
            head[8:] = rng.bytes(120)
            data = bytes(head) + whole[128:]
        os.pwrite(fd, data, 0)
        with pytest.raises(SegmentCorrupt):
            _core.Segment.attach(fd)
        os.close(fd)
    memory.close()
