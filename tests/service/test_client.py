"""A service's client: answers, ways to ask, errors, time-outs, slots; the threads of one process."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from shmzero import (
    BatchedEvaluator,
    Client,
    ConfigError,
    InferenceServer,
    SearchConfig,
    ServerGone,
    _core,
    play_rounds,
    search,
)
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.service.connection import MOST_PORTS
from shmzero.service.link import Link
from shmzero.service.pending import Piece
from tests.support.service_programs import ACTION_DIM, STATE_DIM, VALUE_DIM, check, echo, make_module, rows
from tests.support.services import ROOT, WIDTHS, Holding, constant, held, started, unattached, until

# --- answers ------------------------------------------------------------------------------------------


def test_evaluate_and_evaluate_many_answer_each_row(client: Client, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 16)
    check(states, masks, *client.evaluate_many(states, masks))
    policy, value = client.evaluate(states[3], masks[3])
    assert policy.shape == (ACTION_DIM,) and value.shape == (VALUE_DIM,)
    check(states[3:4], masks[3:4], policy[None], value[None])
    check(states, masks, *client.evaluate_many(list(states), [list(mask) for mask in masks]))
    check(states, masks, *client.evaluate_many(states.astype(np.float64)[::1], masks.astype(np.int8)))


def test_evaluate_many_no_rows_returns_empty_arrays(client: Client) -> None:
    policies, values = client.evaluate_many([], [])
    assert policies.shape == (0, ACTION_DIM) and values.shape == (0, VALUE_DIM)


@pytest.mark.parametrize("num_rows", [17, 160, 1000])
def test_evaluate_many_more_rows_than_a_slot_are_split(client: Client, rng: np.random.Generator, num_rows: int) -> None:
    states, masks = rows(rng, num_rows)
    check(states, masks, *client.evaluate_many(states, masks))


def test_evaluate_torch_tensors_come_back_as_tensors(client: Client, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    states, masks = rows(rng, 5)
    policies, values = client.evaluate_many(torch.from_numpy(states), torch.from_numpy(masks))
    assert isinstance(policies, torch.Tensor) and policies.dtype == torch.float32
    check(states, masks, policies.numpy(), values.numpy())
    policies, _ = client.evaluate_many(list(torch.from_numpy(states)), list(torch.from_numpy(masks)))
    assert torch.equal(policies, torch.from_numpy(echo(states, masks)[0]))
    policy, _ = client.evaluate(torch.from_numpy(states[0]).bfloat16(), torch.from_numpy(masks[0]))
    assert isinstance(policy, torch.Tensor)


def test_service_of_a_custom_module_equals_calling_it_in_three_processes(name: str) -> None:
    torch = pytest.importorskip("torch")
    module = make_module()
    with InferenceServer(module, *WIDTHS, name=name, device="cpu"):
        programs = [
            subprocess.Popen([sys.executable, "-m", "tests.support.service_programs", "module", name, str(seed)],
                             cwd=ROOT, stdout=subprocess.PIPE)
            for seed in range(3)
        ]  # fmt: skip
        answers = [program.communicate()[0] for program in programs]
    for seed, (program, answer) in enumerate(zip(programs, answers, strict=True)):
        assert program.returncode == 0
        states, masks = rows(np.random.default_rng(seed), 100)
        with torch.inference_mode():
            policies, values = module(torch.from_numpy(states), torch.from_numpy(masks))
        direct = np.concatenate([policies.numpy(), values.numpy()], axis=1)
        file = io.BytesIO(answer)
        assert np.abs(np.load(file) - direct).max() < 1e-6
        assert np.abs(np.load(file) - direct[0]).max() < 1e-6


@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_masks_of_zeros_and_ones_are_taken_in_any_type(client: Client, rng: np.random.Generator, kind: str) -> None:
    torch = pytest.importorskip("torch")
    states, masks = rows(rng, 5)
    given = masks.astype(kind)
    check(states, masks, *client.evaluate_many(states, given))
    check(states, masks, *client.evaluate_many(states, given.tolist()))
    tensor = torch.from_numpy(masks).to(getattr(torch, kind))
    policies, values = client.evaluate_many(torch.from_numpy(states), tensor)
    check(states, masks, policies.numpy(), values.numpy())
    check(states[:1], np.ones_like(masks[:1]), *client.evaluate_many(states[:1], torch.ones(1, ACTION_DIM)))
    policy, value = client.evaluate(states[0], list(tensor[0]))
    check(states[:1], masks[:1], policy[None], value[None])
    with client.request(5) as r:
        r.states[:], r.masks[:] = states, r.pack_masks(tensor)
        r.run()
        check(states, masks, r.policies, r.values)
        with pytest.raises(ValueError, match="masks holds 0.5"):
            r.pack_masks(np.full((5, ACTION_DIM), 0.5))


@pytest.mark.parametrize("num_actions", [1, 8, 63, 64, 65, 200])
def test_masks_of_any_width_arrive(num_actions: int, rng: np.random.Generator) -> None:
    masks = rng.random((9, num_actions)) < 0.5
    with BatchedEvaluator(lambda s, m: (m.astype(np.float32), s), 2, num_actions, 2, slots=2) as evaluator:
        policies, _ = evaluator.evaluate_many(np.zeros((9, 2)), masks)
    assert np.array_equal(policies.astype(bool), masks)


def test_float16_wire_rounds_states_and_refuses_what_it_cannot_hold(name: str, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 20)
    with InferenceServer(echo, *WIDTHS, name=name, wire="float16") as server:
        client = server.client()
        assert client.wire == "float16"
        rounded = states.astype(np.float16).astype(np.float32)
        check(rounded, masks, *client.evaluate_many(states, masks))
        with pytest.raises(ValueError, match="row 1 is NaN, or infinite as float16"):
            client.evaluate_many(np.where(np.arange(20)[:, None] == 1, 1e6, states), masks)


@pytest.mark.parametrize("wire", ["float16", "float32"])
def test_states_of_any_layout_and_type_arrive(name: str, wire: str, rng: np.random.Generator) -> None:
    asked = rows(rng, 20)
    states, masks = asked[0].astype(wire), asked[1]
    with InferenceServer(echo, *WIDTHS, name=name, wire=wire) as server:
        client = server.client()
        swapped = states.astype(states.dtype.newbyteorder())
        for given in (states, np.asfortranarray(states), swapped, states.astype(np.float64), states.tolist()):
            check(states.astype(np.float32), masks, *client.evaluate_many(given, masks))
        check(states[::2].astype(np.float32), masks[::2], *client.evaluate_many(states[::2], masks[::2]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wire", ["float16", "float32"])
def test_states_beyond_what_travels_are_refused_without_a_warning(
    name: str, wire: str, rng: np.random.Generator
) -> None:
    states, masks = rows(rng, 3)
    with InferenceServer(echo, *WIDTHS, name=name, wire=wire) as server:
        client = server.client()
        with pytest.raises(ValueError, match=f"row 0 is NaN, or infinite as {wire}"):
            client.evaluate(states[0].astype(np.float64) + 1e300, masks[0])


# --- other ways to ask ------------------------------------------------------------------------------------


def test_submit_many_keeps_several_requests_going(client: Client, rng: np.random.Generator) -> None:
    asked = [rows(rng, n) for n in (3, 40, 16, 1)]
    handles = [client.submit_many(*each) for each in asked]
    for each, handle in reversed(list(zip(asked, handles, strict=True))):
        check(*each, *handle.result())
        check(*each, *handle.result(0.0))


def test_submit_many_dropped_gives_its_slots_back(server: InferenceServer, rng: np.random.Generator) -> None:
    client = server.client()
    for _ in range(200):
        client.submit_many(*rows(rng, 60))
    check(*(asked := rows(rng, 60)), *client.evaluate_many(*asked))


def test_request_gives_views_of_the_slot(client: Client, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 5)
    for _ in range(40):
        with client.request(5) as r:
            r.states[:] = states
            r.masks[:] = r.pack_masks(masks)
            r.run()
            check(states, masks, r.policies, r.values)
            assert not r.policies.flags.owndata
            with pytest.raises(RuntimeError, match="sent already"):
                r.run()
    with pytest.raises(ValueError, match=r"rows is 17; .* holds 1\.\.16"):
        client.request(17)


def test_threads_share_one_client(client: Client) -> None:
    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            asked = rows(rng, int(rng.integers(1, 50)))
            check(*asked, *client.evaluate_many(*asked))

    with ThreadPoolExecutor(24) as pool:  # more than a client has in flight
        list(pool.map(ask, range(24)))


def test_client_pickles_as_its_name(client: Client, rng: np.random.Generator) -> None:
    other = pickle.loads(pickle.dumps(client))
    assert other.name == client.name
    check(*(asked := rows(rng, 4)), *other.evaluate_many(*asked))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_client_after_a_fork_attaches_anew(server: InferenceServer, client: Client, rng: np.random.Generator) -> None:
    asked = rows(rng, 4)
    pending = client.submit_many(*asked)
    check(*asked, *client.evaluate_many(*asked))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(RuntimeError, match="fork"):
                pending.result()
            check(*asked, *client.evaluate_many(*asked))
            server.close()  # not its own to close
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    check(*asked, *pending.result())
    check(*asked, *client.evaluate_many(*asked))


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "masks", "why"),
    [
        (np.zeros((2, 41)), np.ones((2, 7), bool), r"shape \[2, 41\]; the service takes \[n, 40\]"),
        (np.zeros(40), np.ones(7, bool), r"shape \[40\]; the service takes"),
        (np.zeros((2, 40)), np.ones((3, 7), bool), r"masks has shape \[3, 7\]; these states need \[2, 7\]"),
        (np.zeros((2, 40)), np.full((2, 7), 0.5), r"masks holds 0.5 at \[0, 0\]; allowed: bools, 0 and 1"),
        (np.zeros((2, 40)), np.eye(7)[:2] * 2, r"masks holds 2 at \[0, 0\]"),
        (np.zeros((2, 40)), np.eye(7, dtype=int)[:2] - 1, r"masks holds -1 at \[0, 1\]"),
        (np.zeros((2, 40)), np.where(np.eye(7)[:2], np.nan, 1), r"masks holds nan at \[0, 0\]"),
        (np.zeros((2, 40)), [["yes"] * 7] * 2, "masks has dtype <U3; allowed: bools, or numbers that are 0 or 1"),
        (np.zeros((2, 40)), np.ones((2, 7), complex), "masks has dtype complex128"),
        (np.where(np.arange(80).reshape(2, 40) == 53, np.nan, 0), np.ones((2, 7), bool), "state 13 of row 1 is NaN"),
        ([[0.0] * 40, [0.0] * 39], np.ones((2, 7), bool), "inhomogeneous"),
    ],
)
def test_evaluate_many_wrong_rows_raise_value_error(client: Client, states: Any, masks: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        client.evaluate_many(states, masks)
    check(*(asked := rows(np.random.default_rng(1), 3)), *client.evaluate_many(*asked))


def test_row_that_is_not_finite_is_numbered_within_the_whole_call(client: Client, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 40)
    states[33, 5] = np.nan
    for ask in (client.evaluate_many, client.submit_many):
        with pytest.raises(ValueError, match="state 5 of row 33 is NaN"):
            ask(states, masks)


def test_evaluate_slow_model_raises_timeout_error_and_later_answers(name: str, rng: np.random.Generator) -> None:
    model = Holding()
    states, masks = rows(rng, 3)
    with InferenceServer(model, *WIDTHS, name=name, slots=8) as server:
        client = server.client()
        with pytest.raises(TimeoutError, match="did not answer 3 rows in time"):
            client.evaluate_many(*held(rng, 3), timeout=0.05)
        client.submit_many(*held(rng, 1))  # the first may have been withdrawn before it was taken
        assert model.holds.wait(30)
        with pytest.raises(TimeoutError), client.request(3) as r:
            r.run(timeout=0.0)
        pending = client.submit_many(states, masks)
        with pytest.raises(TimeoutError):
            pending.result(0.05)
        with pytest.raises(TimeoutError):
            pending.result(-1.0)
        model.let_go.set()
        check(states, masks, *client.evaluate_many(states, masks))
        check(states, masks, *pending.result())  # a time-out does not give it up
        until(lambda: set().union(*(server._memory.segment.slot_states(w) for w in range(8))) == {"free"})


def test_call_does_not_wait_for_another_threads_time_out(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads of one client look for a server, and for one result: the time-out of each is its own."""
    asked = rows(rng, 2)
    client, model, looked = unattached(name), Holding(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patched:
            patched.setattr(client._link, "find", looked.set)
            patient = pool.submit(client.evaluate_many, *asked)
            looked.wait()
            with pytest.raises(ServerGone, match="nobody serves"):
                client.evaluate_many(*asked, timeout=0.0)
            assert not patient.done()
        with InferenceServer(model, *WIDTHS, name=name):
            check(*asked, *patient.result())
            pending = client.submit_many(*(kept := held(rng, 2)))
            patient = pool.submit(pending.result)
            until(lambda: not pending._lock.acquire(blocking=False) or pending._lock.release())
            with pytest.raises(TimeoutError, match="did not answer 2 rows in time"):
                pending.result(0.0)
            assert not patient.done()
            model.let_go.set()
            check(*kept, *patient.result())


def test_time_out_of_a_call_is_one_for_all_that_it_waits_for(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a server, for a slot and for the answer, each until the same moment."""
    deadlines: dict[str, float] = {}

    def recorded(kind: type, method: str) -> None:
        original = getattr(kind, method)

        def wrapper(*arguments: Any) -> Any:
            deadlines[method] = arguments[-1]
            return original(*arguments)

        monkeypatch.setattr(kind, method, wrapper)

    model = Holding()
    with InferenceServer(model, *WIDTHS, name=name, slots=1) as server, ThreadPoolExecutor(1) as pool:
        with server.client().request(1):
            for kind, method in ((Link, "connect"), (Link, "acquire"), (Piece, "finish")):
                recorded(kind, method)
            client = unattached(name)
            asking = pool.submit(client.evaluate_many, *held(rng, 1), timeout=0.5)
            until(lambda: "acquire" in deadlines)
        with pytest.raises(TimeoutError):
            asking.result()
        model.let_go.set()
    assert deadlines.keys() >= {"connect", "acquire"} and len(set(deadlines.values())) == 1


def test_pending_requests_leave_slots_to_other_calls_of_their_client(name: str, rng: np.random.Generator) -> None:
    """More of them than a client has requests in flight; nobody has asked for their results yet."""
    with InferenceServer(echo, *WIDTHS, name=name, slots=64, rows_per_slot=16) as server:
        client = server.client()
        asked = [rows(rng, n) for n in [16 * MOST_PORTS] + [64] * MOST_PORTS]
        handles = [client.submit_many(*each) for each in asked]
        assert server.stats()["clients"] == 1
        for _ in range(3):
            check(*(other := rows(rng, 20)), *client.evaluate_many(*other))
        for each, handle in zip(asked, handles, strict=True):
            check(*each, *handle.result())


def test_client_with_all_its_requests_in_flight_says_so(name: str, rng: np.random.Generator) -> None:
    model = Holding()
    with InferenceServer(model, *WIDTHS, name=name, slots=64) as server:
        client = server.client()
        kept = held(rng, 1)
        handles = [client.submit_many(*kept) for _ in range(MOST_PORTS)]
        with pytest.raises(TimeoutError, match=f"has {MOST_PORTS} requests in flight, the most that one client may"):
            client.evaluate_many(*kept, timeout=0.05)
        model.let_go.set()
        for handle in handles:
            check(*kept, *handle.result())


def test_client_without_a_free_slot_says_so(name: str, rng: np.random.Generator) -> None:
    asked = rows(rng, 1)
    with InferenceServer(echo, *WIDTHS, name=name, slots=1) as server:
        first, second = server.client(), server.client()
        with first.request(1), pytest.raises(TimeoutError, match="all 1 are in use: start it with more slots"):
            second.evaluate_many(*asked, timeout=0.05)
        check(*asked, *second.evaluate_many(*asked))


def test_idle_clients_leave_their_blocks_to_others(name: str, rng: np.random.Generator) -> None:
    """In this process and in another; whoever had a block takes any other for the next request."""
    with InferenceServer(echo, *WIDTHS, name=name, slots=2, rows_per_slot=16) as server:
        idle = subprocess.Popen(
            [sys.executable, "-m", "tests.support.service_programs", "idle", name, "7"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(idle)
        assert idle.stdout is not None and idle.stdout.readline() == "idle\n"
        clients = [server.client() for _ in range(4)]
        for _ in range(5):
            for client in clients:
                check(*(asked := rows(rng, 40)), *client.evaluate_many(*asked))
        out, _ = idle.communicate("")
        assert idle.returncode == 0 and out == "answered\n"


def test_request_that_is_never_entered_holds_nothing(client: Client, rng: np.random.Generator) -> None:
    requests = [client.request(1) for _ in range(MOST_PORTS)]
    check(*(asked := rows(rng, 3)), *client.evaluate_many(*asked))
    del requests


def test_request_being_filled_holds_up_nobody(name: str, rng: np.random.Generator) -> None:
    """Otherwise the batch would wait for it longer than the request does."""
    with InferenceServer(echo, *WIDTHS, name=name, timeout_ms=10_000) as server:
        first, second = server.client(), server.client()
        with first.request(1) as r:
            check(*(asked := rows(rng, 3)), *second.evaluate_many(*asked, timeout=9.0))
            r.states[:], r.masks[:] = 0.25, 0
            r.run()
            assert (r.values == 1.25).all()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_within_a_request_leaves_it_to_the_parent(client: Client, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 2)
    with client.request(2) as r:
        r.states[:], r.masks[:] = states, r.pack_masks(masks)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pytest.raises(RuntimeError, match="fork"):
                    r.run()
                r.__exit__()
                check(states, masks, *client.evaluate_many(states, masks))
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        r.run()
        check(states, masks, r.policies, r.values)


def test_client_of_nobody_raises_server_gone() -> None:
    with pytest.raises(ServerGone, match="nobody serves 'no-such-service'"):
        Client("no-such-service", connect_timeout=0.0)
    with pytest.raises(ConfigError, match="service name is 'a/b'"):
        Client("a/b")


def test_version_of_a_split_request_is_the_oldest_of_its_answers(name: str) -> None:
    """The first slot is answered by version 1, the second after the swap to 2."""
    with InferenceServer(constant(0), *WIDTHS, name=name, slots=1, rows_per_slot=4) as server:
        client = server.client()
        server.swap(constant(1))
        pending = client.submit_many(np.zeros((8, STATE_DIM)), np.ones((8, ACTION_DIM), bool))
        until(lambda: server.stats()["requests"] == 1)  # the second has no slot before `result`
        server.swap(constant(2))
        policies, _ = pending.result()
        assert policies[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
        assert pending.version == client.version == 1


# --- threads of one process ---------------------------------------------------------------------------------


def test_batched_evaluator_puts_rows_of_threads_into_one_batch() -> None:
    sizes: list[int] = []
    first, let_go = threading.Event(), threading.Event()

    def model(states: Any, masks: Any) -> tuple[Any, Any]:
        sizes.append(len(states))
        if len(sizes) == 2:  # after the one that tries it out
            first.set()
            let_go.wait()
        return echo(states, masks)

    rng = np.random.default_rng(5)
    with BatchedEvaluator(model, *WIDTHS) as evaluator, ThreadPoolExecutor(8) as pool:
        asked = [rows(rng, 3) for _ in range(8)]
        answers = [pool.submit(evaluator.evaluate_many, *asked[0])]
        first.wait()
        answers += [pool.submit(evaluator.evaluate_many, *each) for each in asked[1:]]
        until(lambda: sum(evaluator._host.segment.slot_states(w) == ["ready"] for w in range(16)) == 7)
        let_go.set()
        for each, answer in zip(asked, answers, strict=True):
            check(*each, *answer.result())
        assert sizes == [1, 3, 21]
        with pytest.raises(TypeError, match="belongs to its process"):
            pickle.dumps(evaluator)
    with pytest.raises(ServerGone):
        evaluator.evaluate_many(*asked[0])


def test_request_outlives_the_evaluator_that_sent_it(rng: np.random.Generator) -> None:
    asked = rows(rng, 20)  # most of them are sent later
    pending = BatchedEvaluator(echo, *WIDTHS, slots=2, rows_per_slot=4).submit_many(*asked)
    check(*asked, *pending.result())


def test_search_and_play_rounds_through_a_service_equal_direct_evaluation(name: str) -> None:
    config = SearchConfig(determinizations=2, simulations=12)
    direct = HashEvaluator()
    deal = _core.Round.deal(players=4, cards=5, trump=1, seed=11)
    with (
        InferenceServer(direct.evaluate_many, name=name) as server,
        BatchedEvaluator(direct.evaluate_many) as batched,
    ):
        expected = search(deal, direct, config, seed=3)
        records = play_rounds(direct, 6, config, seed=4)
        for evaluator in (server.client(), batched):
            assert np.array_equal(search(deal, evaluator, config, seed=3).visits, expected.visits)
            assert play_rounds(evaluator, 6, config, seed=4) == records


def test_import_of_the_client_loads_no_torch() -> None:
    code = "import shmzero, sys; shmzero.Client, shmzero.InferenceServer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
