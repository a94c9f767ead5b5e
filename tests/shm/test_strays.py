"""What one client or worker writes wrong into shared memory costs its own request: never another's, never the service."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from shmzero import InferenceServer, ModelFailed, _core
from shmzero.errors import SegmentCorrupt
from shmzero.shm.segment import create_private
from tests.service.test_server import TwoStages
from tests.support.service_programs import ACTION_DIM, STATE_DIM, VALUE_DIM, check, echo, rows
from tests.support.services import WIDTHS, Holding, held, until, worker_in_thread

FREE, FILLING, READY, TAKEN, ANSWERED, ORPHANED = range(6)
FUTURE_NS = 2**62


def word(generation: int, state: int, epoch: int = 0) -> int:
    """As csrc/shm/slot.h, SlotWord."""
    return generation << 32 | epoch << 8 | state


@pytest.mark.parametrize("num_rows", [0, 17, 2**32 - 1])
def test_request_of_no_or_too_many_rows_fails_alone(name: str, rng: np.random.Generator, num_rows: int) -> None:
    model = Holding()
    with InferenceServer(model, *WIDTHS, name=name, slots=4, rows_per_slot=16) as server:
        client, segment = server.client(), server._memory.segment
        pending = [client.submit_many(*(asked := held(rng, 3)))]
        model.holds.wait()
        pending += [client.submit_many(*asked) for _ in range(2)]
        _core.overwrite_slot(segment, 1, 0, rows=num_rows)
        model.let_go.set()
        with pytest.raises(ModelFailed, match=f"says that it has {num_rows} rows; a slot of this service holds 1..16"):
            pending[1].result()
        check(*asked, *pending[0].result())
        check(*asked, *pending[2].result())
        assert server.error is None and server.stats()["refused"] == 1
        until(lambda: {s for w in range(4) for s in segment.slot_states(w)} == {"free"})


STRAY = [word(0, 200), word(7, 6), word(0, FREE), word(3, FREE), word(0, FILLING), word(9, FILLING), word(9, ANSWERED), word(9, READY),
         word(0, TAKEN, 1), word(0, TAKEN, 9), word(5, TAKEN, 1), word(0, ORPHANED, 1), word(5, ORPHANED, 3), 2**64 - 1]  # fmt: skip


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_word_that_is_written_over_costs_no_answer_and_no_slot(
    name: str, rng: np.random.Generator, stray: int, block: int
) -> None:
    """Of the request that is being served, of one that waits, and of a slot that nobody has."""
    model = Holding()
    with InferenceServer(model, *WIDTHS, name=name, slots=3, rows_per_slot=16, timeout_ms=10_000) as server:
        client, segment = server.client(), server._memory.segment
        asked = [held(rng, 3), rows(rng, 3)]
        pending = [client.submit_many(*asked[0])]
        model.holds.wait()
        pending.append(client.submit_many(*asked[1]))
        _core.overwrite_slot(segment, block, 0, word=stray, rows=3)
        model.let_go.set()
        for each, handle in zip(asked, pending, strict=True):
            check(*each, *handle.result())
        client.close()
        other = server.client()
        for handle in [other.submit_many(*asked[1]) for _ in range(6)]:
            check(*asked[1], *handle.result())
        assert server.error is None


@pytest.mark.parametrize("stray", [word(0, 200), word(0, FREE), word(0, FILLING), word(1, READY), word(4, ORPHANED)])
def test_worker_whose_word_is_written_over_ends_and_says_so(stray: int) -> None:
    """It would wait for an answer that never comes."""
    memory = create_private(1, 1, 1, 64)
    with worker_in_thread(memory.segment) as worker:
        until(lambda: memory.segment.slot_states(0) == ["ready"] or worker.done())
        _core.overwrite_slot(memory.segment, 0, 0, word=stray)
        with pytest.raises(SegmentCorrupt, match="wrote over shared memory: slot 0 .*; its owner left"):
            worker.result()
    memory.segment.reclaim_worker(0)
    server = _core.ServerPort(memory.segment, 0, 1)
    server.gather(np.zeros((64, 256), np.float16), np.zeros(64, np.uint64), 64, timeout_ms=0.0, wait_ms=0.0)
    assert memory.segment.slot_states(0) == ["free"]  # its successor can begin
    memory.close()


def test_request_of_the_future_is_one_of_now() -> None:
    """It does not hold a batch open, nor make its server look busy; the others wait no longer for it."""
    memory = create_private(1, 3, 1, 4)
    segment = memory.segment
    workers = [_core.WorkerPort(segment, w) for w in range(3)]
    states, masks = np.zeros((16, 256), np.float16), np.zeros(16, np.uint64)
    server = _core.ServerPort(segment, 0, 1)
    for number in (0, 1):
        assert workers[number].begin(0)
        workers[number].publish(0, 1)
        _core.overwrite_slot(segment, number, 0, request_ns=FUTURE_NS)
    assert workers[2].begin(0)
    batch, n = server.gather(states, masks, 16, timeout_ms=0.0, wait_ms=0.0)
    assert n == 2
    server.scatter(batch, np.zeros((2, 52), np.float32), np.zeros((2, 1), np.float32), 1)
    assert sum(server_waits := segment.server_counters(0)["waits"]) == 2 and not any(server_waits[-40:])
    memory.close()


class Failing(TwoStages):
    """A device with a bug: what it raises is no ModelFailed."""

    is_quick = True

    def wait(self, buffer: int) -> None:
        raise ZeroDivisionError("a bug of the device")


def test_server_that_ended_gives_its_name_back(name: str, rng: np.random.Generator) -> None:
    asked = rows(rng, 3)
    device: Any = Failing()
    server = InferenceServer(device, STATE_DIM, ACTION_DIM, VALUE_DIM, name=name)
    client = server.client()
    pending = client.submit_many(*asked)
    until(lambda: server.error is not None)
    until(lambda: f"shmzero-{name}" not in os.listdir("/dev/shm"))
    assert "ZeroDivisionError: a bug of the device" in server.last_failure
    with InferenceServer(echo, *WIDTHS, name=name):
        check(*asked, *pending.result())
        server.close()
        check(*asked, *client.evaluate_many(*asked))
