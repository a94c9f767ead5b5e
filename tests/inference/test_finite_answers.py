"""Answers that hold NaN or infinity: whose request fails, what it says, and how to have them nevertheless."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from shmzero import BatchedEvaluator, InferenceServer, ModelFailed
from shmzero.inference.device import Staging
from shmzero.service.host import LoopControl
from tests.support.service_programs import ACTION_DIM, STATE_DIM, VALUE_DIM, check, echo, rows
from tests.support.services import WIDTHS


def broken_where_asked(states: Any, masks: Any) -> tuple[Any, Any]:
    """An echo; a first state of 0.5 makes its last action NaN, one of 0.25 its last value infinite."""
    policies, values = (np.array(part) for part in echo(states, masks))
    policies[states[:, 0] == 0.5, -1] = np.nan
    values[states[:, 0] == 0.25, -1] = np.inf
    return policies, values


@pytest.mark.parametrize(
    ("mark", "what"),
    [(0.5, "NaN as policy 6 of row 2 of this request"), (0.25, "infinity as value 2 of row 2 of this request")],
)
def test_answer_that_is_not_finite_fails_its_request_and_no_other(
    name: str, rng: np.random.Generator, mark: float, what: str
) -> None:
    held, let_go = threading.Event(), threading.Event()

    def model(states: Any, masks: Any) -> tuple[Any, Any]:
        if (states[:, 0] == 0.125).any():
            held.set()
            let_go.wait()
        return broken_where_asked(states, masks)

    requests = [rows(rng, n) for n in (1, 3, 4, 2)]
    for states, masks in requests:
        states[:, 0], masks[:, -1] = 0.75, True
    requests[0][0][0, 0], requests[2][0][2, 0] = 0.125, mark
    with InferenceServer(model, *WIDTHS, name=name) as server:
        client = server.client()
        pending = [client.submit_many(*requests[0])]
        assert held.wait(60)
        pending += [client.submit_many(*request) for request in requests[1:]]  # one batch
        let_go.set()
        for place in (0, 1, 3):
            check(*requests[place], *pending[place].result())
        with pytest.raises(ModelFailed, match=f"the model answered {what}; .*check_finite=False"):
            pending[2].result()
        assert server.stats()["failures"] == 1 and what in server.last_failure
        states, masks = rows(rng, 3)
        states[:, 0] = 0.75
        check(states, masks, *client.evaluate_many(states, masks))
        with pytest.raises(ModelFailed), client.request(1) as r:
            r.states[:], r.masks[:] = mark, 127
            r.run()


def test_failure_is_counted_before_its_client_is_told_of_it(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, let_go = threading.Event(), threading.Event()

    def failed(control: LoopControl, error: ModelFailed) -> None:
        counting.set()
        let_go.wait(60)
        counts(control, error)

    counts = LoopControl.failed
    monkeypatch.setattr(LoopControl, "failed", failed)
    states, masks = rows(rng, 3)
    states[:, 0], masks[:, -1] = 0.5, True
    with InferenceServer(broken_where_asked, *WIDTHS, name=name, slots=4) as server:
        pending = server.client().submit_many(states, masks)
        assert counting.wait(60)
        states_of_slots = [state for w in range(4) for state in server._memory.segment.slot_states(w)]
        let_go.set()
        with pytest.raises(ModelFailed, match="NaN as policy 6 of row 0"):
            pending.result()
        assert "taken" in states_of_slots and server.stats()["failures"] == 1


def test_answer_that_is_not_finite_is_handed_out_where_that_is_wanted(rng: np.random.Generator) -> None:
    states, masks = rows(rng, 5)
    states[1, 0], masks[:, -1] = 0.5, True
    with BatchedEvaluator(broken_where_asked, *WIDTHS, check_finite=False) as served:
        policies, values = served.evaluate_many(states, masks)
    assert np.isnan(policies[1, -1]) and np.isfinite(values).all() and np.isfinite(policies[[0, 2, 3, 4]]).all()


def test_row_without_a_legal_action_has_zeros_for_a_policy_that_is_not_finite(rng: np.random.Generator) -> None:
    states, masks = rows(rng, 5)
    states[1:4, 0], masks[:, :] = 0.5, [[True], [False], [False], [False], [True]]
    with BatchedEvaluator(broken_where_asked, *WIDTHS) as served:
        policies, values = served.evaluate_many(states, masks)
        assert (policies[1:4] == 0).all() and np.array_equal(values, echo(states, masks)[1])
        masks[3, 2] = True
        with pytest.raises(ModelFailed, match="policy 6 of row 3"):
            served.evaluate_many(states, masks)


def test_answer_that_is_not_finite_is_found_within_a_call_of_many_requests(rng: np.random.Generator) -> None:
    states, masks = rows(rng, 50)
    states[:, 0], masks[:, -1] = 0.75, True
    states[29, 0] = 0.5
    named = r"policy 6 of row 5 of this request.*\(it begins at row 24 of the call\)"
    served = BatchedEvaluator(broken_where_asked, *WIDTHS, rows_per_slot=8, max_batch=3)
    with served, pytest.raises(ModelFailed, match=named):
        served.evaluate_many(states, masks)


def test_batch_device_of_the_users_own_is_checked_as_well(name: str, rng: np.random.Generator) -> None:
    class Device:
        num_buffers, max_batch = 1, 8

        def __init__(self) -> None:
            self.one = Staging(np.zeros((8, STATE_DIM), np.float32), np.zeros(8, np.uint64),
                               np.zeros((8, ACTION_DIM), np.float32), np.zeros((8, VALUE_DIM), np.float32))  # fmt: skip

        def staging(self, buffer: int) -> Staging:
            return self.one

        def launch(self, buffer: int, num_rows: int) -> None:
            self.one.values[:] = np.inf

        def finished(self, buffer: int) -> bool:
            return True

        def wait(self, buffer: int) -> None:
            pass

        def poll(self) -> str | None:
            return None

        def swap(self, weights: Any) -> None:
            pass

    with (
        InferenceServer(Device(), *WIDTHS, name=name) as server,
        pytest.raises(ModelFailed, match="infinity as value 0 of row 0"),
    ):
        server.client().evaluate_many(*rows(rng, 2))
