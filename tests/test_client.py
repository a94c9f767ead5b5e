"""A named service and its clients: answers, errors, deaths of either side, leftovers.

SHMZERO_KILLS, SHMZERO_FUZZ and SHMZERO_GARBAGE set how many kills, mangled headers and segments of garbage
(20, 100,000 and 20).
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import pty
import random
import re
import secrets
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import posix_ipc
import pytest

from shmzero import (
    BatchedEvaluator,
    Client,
    ConfigError,
    InferenceServer,
    ModelFailed,
    SearchConfig,
    ServerGone,
    _core,
    play_rounds,
    search,
)
from shmzero.client import MOST_PORTS, _Piece, _unpickled
from shmzero.errors import SegmentCorrupt
from shmzero.evaluators import HashEvaluator, RowFunctionDevice, Staging
from shmzero.segment import create_private, find_service, sweep_leftovers
from shmzero.server import percentile_us
from tests.service_programs import ACTION_DIM, STATE_DIM, VALUE_DIM, check, echo, make_module, make_raising, rows

ROOT = Path(__file__).parent.parent
WIDTHS = (STATE_DIM, ACTION_DIM, VALUE_DIM)
KILLS = int(os.environ.get("SHMZERO_KILLS", "20"))
FUZZ = int(os.environ.get("SHMZERO_FUZZ", "100000"))
GARBAGE = int(os.environ.get("SHMZERO_GARBAGE", "20"))


@pytest.fixture
def name() -> Iterator[str]:
    """A name that nobody has; nothing may be left of it."""
    fresh = f"test-{secrets.token_hex(6)}"
    yield fresh
    assert f"shmzero-{fresh}" not in os.listdir("/dev/shm")


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Programs of a test that failed end with it."""
    yield
    while started:
        program = started.pop()
        if program.poll() is None:
            program.kill()
            program.communicate()


started: list[subprocess.Popen[str]] = []


@pytest.fixture
def server(name: str) -> Iterator[InferenceServer]:
    with InferenceServer(echo, *WIDTHS, name=name, slots=32, rows_per_slot=16) as served:
        yield served


@pytest.fixture
def client(server: InferenceServer) -> Client:
    return server.client()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def start_server(name: str, *more: object, model: str = "make_echo") -> subprocess.Popen[str]:
    """A server process that has said that it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shmzero.serve", "--name", name, "--model", f"tests.service_programs:{model}",
         "--state-dim", str(STATE_DIM), "--action-dim", str(ACTION_DIM), "--value-dim", str(VALUE_DIM),
         "--slots", "32", "--rows-per-slot", "16", *map(str, more)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    started.append(process)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("serving"), line + process.stderr.read()
    return process


def start_client(name: str, seed: int) -> subprocess.Popen[str]:
    """A client process that is attached and asks until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service_programs", "check", name, str(seed)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    started.append(process)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def unattached(name: str) -> Client:
    """A client that has not looked for its server yet, as one that has just been unpickled."""
    return _unpickled(name, None)


def stopped(process: subprocess.Popen[str]) -> None:
    """Stop a process; returns once it is."""
    process.send_signal(signal.SIGSTOP)
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


class Holding:
    """An echo that holds batches with a first state of 0.5 until it is let go."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, states: Any, masks: Any) -> tuple[Any, Any]:
        if (states[:, 0] == 0.5).any():
            self.holds.set()
            self.let_go.wait()
        return echo(states, masks)


def held(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Rows that a Holding holds."""
    states, masks = rows(rng, n)
    states[:, 0] = 0.5
    return states, masks


def until(condition: Any) -> None:
    """The watchdog is pytest's own time-out."""
    while not condition():
        time.sleep(0.01)


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
            subprocess.Popen([sys.executable, "-m", "tests.service_programs", "module", name, str(seed)],
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
        (np.zeros((2, 40)), np.ones((2, 7)), "masks has dtype float64"),
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


def test_model_that_raises_fails_none_but_the_requests_it_refuses(name: str, rng: np.random.Generator) -> None:
    """One of three clients in a batch that fails."""
    model, refused = Holding(), make_raising()

    def both(states: Any, masks: Any) -> tuple[Any, Any]:
        model(states, masks)
        return refused(states, masks)  # type: ignore[no-any-return]

    asked = [rows(rng, n) for n in (3, 5, 2)]
    for states, _ in asked:
        states[:, 0] = 0.25
    asked[1][0][:, 0] = 0.95
    with InferenceServer(both, *WIDTHS, name=name) as server:
        clients = [server.client() for _ in range(3)]
        first = clients[0].submit_many(*(kept := held(rng, 1)))
        model.holds.wait()
        pending = [client.submit_many(*each) for client, each in zip(clients, asked, strict=True)]
        model.let_go.set()
        check(*kept, *first.result())
        check(*asked[0], *pending[0].result())
        check(*asked[2], *pending[2].result())
        with pytest.raises(ModelFailed, match="ArithmeticError in a batch of 5 rows"):
            pending[1].result()
        assert server.stats()["failures"] == 1


def test_message_of_a_model_is_cut_between_characters(name: str, rng: np.random.Generator) -> None:
    said = [""]

    def raising(states: Any, masks: Any) -> tuple[Any, Any]:
        if states[0, 0] == 0.5:
            raise ArithmeticError(said[0])
        return echo(states, masks)

    with InferenceServer(raising, *WIDTHS, name=name) as server:
        client = server.client()
        for said[0] in ("é" * 200, "x" + "é" * 200, "€" * 200, "x€" + "\U0001f600" * 80, "\udc80" * 300):
            with pytest.raises(ModelFailed, match="ArithmeticError in a batch of 2 rows: .{30,}"):
                client.evaluate_many(*held(rng, 2))
        check(*(asked := rows(rng, 3)), *client.evaluate_many(*asked))


def test_model_that_raises_fails_that_request_alone(name: str, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 40)
    states[:, 0] = 0.5
    with InferenceServer(make_raising(), *WIDTHS, name=name, rows_per_slot=16) as server:
        client = server.client()
        for _ in range(30):
            check(states, masks, *client.evaluate_many(states, masks))
            bad = np.where(np.arange(40)[:, None] == 33, 0.95, states)
            with pytest.raises(ModelFailed, match="ArithmeticError in a batch of .* rows: a state is too large"):
                client.evaluate_many(bad, masks)
            with pytest.raises(ModelFailed), client.request(1) as r:
                r.states[:], r.masks[:] = 0.95, 0
                r.run()
        assert server.stats()["failures"] >= 60 and "too large" in server.last_failure


def test_model_of_other_widths_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ConfigError, match=r"policies \[1, 7\] and values \[1, 3\]; .* \[1, 8\] and \[1, 3\]"):
        InferenceServer(lambda s, m: (s[:, :7], s[:, :3]), 40, 8, 3, name=name)


def test_evaluate_slow_model_raises_timeout_error_and_later_answers(name: str, rng: np.random.Generator) -> None:
    model = Holding()
    states, masks = rows(rng, 3)
    with InferenceServer(model, *WIDTHS, name=name, slots=8) as server:
        client = server.client()
        with pytest.raises(TimeoutError, match="did not answer 3 rows in time"):
            client.evaluate_many(*held(rng, 3), timeout=0.05)
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
            patched.setattr(client, "_find", looked.set)
            patient = pool.submit(client.evaluate_many, *asked)
            looked.wait()
            with pytest.raises(ServerGone, match="nobody serves"):
                client.evaluate_many(*asked, timeout=0.0)
            assert not patient.done()
        with InferenceServer(model, *WIDTHS, name=name):
            check(*asked, *patient.result())
            pending = client.submit_many(*(kept := held(rng, 2)))
            patient = pool.submit(pending.result)
            until(pending._lock.locked)
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
            for kind, method in ((Client, "_connect"), (Client, "_acquire"), (_Piece, "finish")):
                recorded(kind, method)
            client = unattached(name)
            asking = pool.submit(client.evaluate_many, *held(rng, 1), timeout=0.5)
            until(lambda: "_acquire" in deadlines)
        with pytest.raises(TimeoutError):
            asking.result()
        model.let_go.set()
    assert deadlines.keys() >= {"_connect", "_acquire"} and len(set(deadlines.values())) == 1


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
        with first.request(1), pytest.raises(TimeoutError, match="all 1 are in use: start it with more --slots"):
            second.evaluate_many(*asked, timeout=0.05)
        check(*asked, *second.evaluate_many(*asked))


def test_idle_clients_leave_their_blocks_to_others(name: str, rng: np.random.Generator) -> None:
    """In this process and in another; whoever had a block takes any other for the next request."""
    with InferenceServer(echo, *WIDTHS, name=name, slots=2, rows_per_slot=16) as server:
        idle = subprocess.Popen(
            [sys.executable, "-m", "tests.service_programs", "idle", name, "7"],
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
    """Otherwise the batch would wait for it: for hours, with this time-out."""
    with InferenceServer(echo, *WIDTHS, name=name, timeout_ms=1e7) as server:
        first, second = server.client(), server.client()
        with first.request(1) as r:
            check(*(asked := rows(rng, 3)), *second.evaluate_many(*asked))
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


# --- weights ------------------------------------------------------------------------------------------------


def test_swap_of_a_module_serves_the_new_weights_with_their_version(name: str, rng: np.random.Generator, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    module = make_module()
    states, masks = rows(rng, 10)

    def direct() -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(states), torch.from_numpy(masks))[1].numpy()

    with InferenceServer(module, *WIDTHS, name=name, device="cpu") as server:
        client = server.client()
        before = direct()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.25)
        assert np.allclose(client.evaluate_many(states, masks)[1], before, atol=1e-6) and client.version == 0
        assert server.swap(module) == 1
        assert np.allclose(client.evaluate_many(states, masks)[1], direct(), atol=1e-6) and client.version == 1
        with torch.no_grad():
            module.value.bias.add_(1.0)
        save_file(module.state_dict(), tmp_path / "w.safetensors")
        assert server.swap(tmp_path / "w.safetensors") == 2
        assert np.allclose(client.evaluate_many(states, masks)[1], direct(), atol=1e-6) and client.version == 2
        with pytest.raises(ConfigError, match=r"another model's: .*nothing.* do not fit"):
            server.swap({"nothing": torch.zeros(1)})
        with pytest.raises(ConfigError, match="cannot be read"):
            server.swap("no-such-file.safetensors")
        assert np.allclose(client.evaluate_many(states, masks)[1], direct(), atol=1e-6) and client.version == 2


def constant(number: int) -> Any:
    """A model that answers with one number."""
    return lambda s, m: (np.full((len(s), 7), number, np.float32), np.full((len(s), 3), number, np.float32))


def test_swap_that_came_too_late_shares_its_version_with_no_other(name: str, rng: np.random.Generator) -> None:
    """Two swaps that wait in vain for a batch are withdrawn; one that the loop is at uses its number up."""
    model = Holding()

    def slow_to_try(states: Any, masks: Any) -> tuple[Any, Any]:
        trying.set()
        tried.wait()
        return constant(8)(states, masks)  # type: ignore[no-any-return]

    trying, tried = threading.Event(), threading.Event()
    with InferenceServer(model, *WIDTHS, name=name) as server:
        client = server.client()
        pending = client.submit_many(*held(rng, 1))
        model.holds.wait()
        for number in (5, 6):
            with pytest.raises(TimeoutError, match="were not taken up within 0.05 s"):
                server.swap(constant(number), timeout=0.05)
        model.let_go.set()
        pending.result()
        assert server.swap(constant(7)) == 1 == server.version
        assert (client.evaluate_many(*rows(rng, 2))[0] == 7).all() and client.version == 1
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(server.swap, slow_to_try, 0.5)
            trying.wait()
            with pytest.raises(TimeoutError):
                server.swap(constant(9), timeout=0.0)  # another thread's is running
            with pytest.raises(TimeoutError):
                late.result()
            tried.set()
        until(lambda: server.version == 2)
        assert (client.evaluate_many(*rows(rng, 2))[0] == 8).all() and client.version == 2
        assert server.swap(constant(9)) == 3


def test_swap_that_cannot_be_is_the_callers_error_and_the_old_weights_stay(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    module = make_module()
    asked = rows(rng, 3)
    with InferenceServer(module, *WIDTHS, name=name, device="cpu") as server:
        client = server.client()
        before = client.evaluate_many(*asked)
        arrays = {key: tensor.numpy() + 1 for key, tensor in module.state_dict().items()}
        with pytest.raises(ConfigError, match="weights has a ndarray for .*; allowed: torch tensors"):
            server.swap(arrays)
        halves = {key: tensor + 1 for key, tensor in module.state_dict().items()}
        halves["value.bias"] = halves["value.bias"].to("meta")  # has no data to copy
        with pytest.raises(ConfigError, match="the weights cannot be served: "):
            server.swap(halves)
        with pytest.raises(ConfigError, match="weights is 12; allowed: a module"):
            server.swap(12)
        for old, new in zip(before, client.evaluate_many(*asked), strict=True):
            assert np.array_equal(old, new)
        assert client.version == server.version == 0 and server.error is None
        assert torch.equal(torch.from_numpy(before[1]), torch.from_numpy(client.evaluate_many(*asked)[1]))


def test_swap_of_a_batch_device_that_raises_is_a_config_error(name: str, rng: np.random.Generator) -> None:
    class Stubborn(TwoStages):
        is_quick = True

        def swap(self, weights: Any) -> None:
            raise ZeroDivisionError("the kettle\nis empty")

    with InferenceServer(Stubborn(), *WIDTHS, name=name) as server:
        with pytest.raises(ConfigError, match="the weights cannot be served: ZeroDivisionError: the kettle is empty"):
            server.swap(None)
        check(*(asked := rows(rng, 3)), *server.client().evaluate_many(*asked))


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


def test_batched_evaluator_swap_serves_the_new_weights_with_their_version() -> None:
    states, masks = np.zeros((40, STATE_DIM)), np.ones((40, ACTION_DIM), bool)
    with BatchedEvaluator(constant(0), *WIDTHS, slots=4, rows_per_slot=8) as evaluator:
        for number in (1, 2):
            assert (evaluator.evaluate_many(states, masks)[0] == number - 1).all()
            assert evaluator.version == number - 1
            assert evaluator.swap(constant(number)) == number
        assert (evaluator.evaluate(states[0], masks[0])[1] == 2).all() and evaluator.version == 2
        with pytest.raises(ConfigError, match="policies"):
            evaluator.swap(lambda s, m: (s, s))
        assert (evaluator.evaluate_many(states, masks)[1] == 2).all() and evaluator.version == 2


def test_swap_under_load_never_mixes_versions(name: str) -> None:
    with InferenceServer(constant(0), *WIDTHS, name=name) as server:
        done = threading.Event()

        def ask(seed: int) -> int:
            client, states = server.client(), np.zeros((8, STATE_DIM))
            last = 0
            while not done.is_set():
                handle = client.submit_many(states, np.ones((8, 7), bool))
                policies, values = handle.result()
                assert (policies == handle.version).all() and (values == handle.version).all()
                assert handle.version >= last
                last = handle.version
            return last

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask, seed) for seed in range(3)]
            for number in range(1, 30):
                assert server.swap(constant(number)) == number
            answered = server.stats()["requests"]
            until(lambda: server.stats()["requests"] > answered + 20 or any(f.done() for f in asking))
            done.set()
            assert [f.result() for f in asking] == [29, 29, 29]


# --- one server a name, leftovers ---------------------------------------------------------------------------


def test_server_of_a_living_name_is_refused(server: InferenceServer, client: Client, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match=f"is being served by process {os.getpid()}"):
        InferenceServer(echo, *WIDTHS, name=server.name)
    check(*(asked := rows(rng, 4)), *client.evaluate_many(*asked))


def test_server_closed_tells_its_clients_and_a_new_one_is_found(name: str, rng: np.random.Generator) -> None:
    asked = rows(rng, 4)
    with InferenceServer(echo, *WIDTHS, name=name) as first:
        client = first.client()
        check(*asked, *client.evaluate_many(*asked))
    with pytest.raises(ServerGone, match="has been closed by its server and nobody else serves it"):
        client.evaluate_many(*asked, timeout=0.05)
    with InferenceServer(echo, *WIDTHS, name=name):
        check(*asked, *client.evaluate_many(*asked))
    with InferenceServer(echo, *WIDTHS, name=name, rows_per_slot=2):
        check(*asked, *client.evaluate_many(*asked))
    with (
        InferenceServer(lambda s, m: (s, s), 4, 4, 4, name=name),
        pytest.raises(ServerGone, match="other widths"),
    ):
        client.evaluate_many(*asked)


def test_call_across_a_server_that_leaves_is_answered_by_the_next(name: str, rng: np.random.Generator) -> None:
    """One thread waits for a slot of the first server, one asks when it has left already."""
    asked = rows(rng, 4)
    with ThreadPoolExecutor(2) as pool:
        with InferenceServer(echo, *WIDTHS, name=name, slots=1) as first, first.client().request(1):
            client = first.client()
            waiting = pool.submit(client.evaluate_many, *asked)
            until(lambda: client._connection is not None and client._connection.is_wanted)
            first.close()
        late = pool.submit(client.evaluate, asked[0][0], asked[1][0])
        with InferenceServer(echo, *WIDTHS, name=name, slots=4):
            check(*asked, *waiting.result())
            check(asked[0][:1], asked[1][:1], *(part[None] for part in late.result()))


def test_version_grows_where_the_next_server_has_other_sizes(name: str, rng: np.random.Generator) -> None:
    server = start_server(name)
    client = Client(name)
    asked = rows(rng, 4)
    check(*asked, *client.evaluate_many(*asked))
    assert client.version == 0
    server.kill()
    server.communicate()
    with InferenceServer(echo, *WIDTHS, name=name, slots=8) as successor:
        check(*asked, *client.evaluate_many(*asked))
        assert client.version == successor.version == 1


class TwoStages:
    """An echo with two batches in flight, done when they are waited for, and before that where `is_quick`."""

    num_stages = 2
    max_batch = 8
    is_quick = False

    def __init__(self, wire: str = "float32") -> None:
        self._stages = [
            Staging(np.zeros((8, STATE_DIM), wire), np.zeros(8, np.uint64),
                    np.zeros((8, ACTION_DIM), np.float32), np.zeros((8, VALUE_DIM), np.float32))
            for _ in range(2)
        ]  # fmt: skip
        self.launched = threading.Event()

    def staging(self, stage: int) -> Staging:
        return self._stages[stage]

    def launch(self, stage: int, rows: int) -> None:
        self.launched.set()

    def finished(self, stage: int) -> bool:
        return self.is_quick

    def wait(self, stage: int) -> None:
        staging = self._stages[stage]
        masks = np.zeros((8, ACTION_DIM), np.bool_)
        _core.unpack_masks(staging.masks[:, None], masks)
        staging.policies[:], staging.values[:] = echo(staging.features, masks)

    def swap(self, weights: Any) -> None:
        pass

    def poll(self) -> str | None:
        return None


def test_server_closed_finishes_the_batches_in_flight(name: str, rng: np.random.Generator) -> None:
    device = TwoStages()
    with InferenceServer(device, *WIDTHS, name=name) as server:
        pending = server.client().submit_many(*(asked := rows(rng, 3)))
        device.launched.wait()
    check(*asked, *pending.result(0.0))


def test_batch_that_fails_with_another_in_flight_is_run_again_request_by_request(
    name: str, rng: np.random.Generator
) -> None:
    class Refusing(TwoStages):
        """Refuses a first state above 0.9, when it is waited for."""

        def __init__(self) -> None:
            super().__init__()
            self.let_go = threading.Event()
            self.rows = [0, 0]

        def launch(self, stage: int, rows: int) -> None:
            self.rows[stage] = rows
            super().launch(stage, rows)

        def finished(self, stage: int) -> bool:
            return self.let_go.is_set()

        def wait(self, stage: int) -> None:
            self.let_go.wait()
            if (self._stages[stage].features[: self.rows[stage], 0] > 0.9).any():
                raise ModelFailed("a state is too large")
            super().wait(stage)

    device = Refusing()
    asked = [rows(rng, n) for n in (1, 3, 2, 2)]
    for states, _ in asked:
        states[:, 0] = 0.25
    asked[2][0][1, 0] = 0.95
    with InferenceServer(device, *WIDTHS, name=name) as server:
        client = server.client()
        pending = [client.submit_many(*asked[0])]
        device.launched.wait()
        pending += [client.submit_many(*each) for each in asked[1:]]
        device.let_go.set()
        for place in (3, 1, 0):
            check(*asked[place], *pending[place].result())
        with pytest.raises(ModelFailed, match="a state is too large"):
            pending[2].result()


def test_device_that_does_not_fit_the_service_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ConfigError, match=r"features are float16 \[8, 40\]; .* float32 \[8, 40\]"):
        InferenceServer(TwoStages("float16"), *WIDTHS, name=name)
    with pytest.raises(ConfigError, match=r"values are float32 \[8, 3\]; .* float32 \[8, 4\]"):
        InferenceServer(TwoStages(), STATE_DIM, ACTION_DIM, 4, name=name)
    with pytest.raises(ConfigError, match=r"masks are uint64 \[8\]; .* uint64 \[8, 2\]"):
        BatchedEvaluator(TwoStages(), STATE_DIM, 65, VALUE_DIM)
    with pytest.raises(ConfigError, match="features are float16"):
        InferenceServer(RowFunctionDevice(_core.hash_evaluate, 64), name=name)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"state_dim": -3}, "state_dim is -3"),
        ({"action_dim": 1 << 20}, "action_dim is 1048576"),
        ({"slots": 0}, "slots is 0"),
        ({"device": "nonsense"}, "device is 'nonsense'; a function of numpy arrays runs on the CPU"),
    ],
)
def test_server_of_settings_that_cannot_be_is_a_config_error(name: str, options: dict[str, Any], why: str) -> None:
    widths = {"state_dim": STATE_DIM, "action_dim": ACTION_DIM, "value_dim": VALUE_DIM}
    with pytest.raises(ConfigError, match=why):
        InferenceServer(echo, name=name, **(widths | options))


def test_server_of_a_program_that_ends_leaves_nothing(name: str) -> None:
    code = (
        "from shmzero import BatchedEvaluator, InferenceServer; from tests.service_programs import *\n"
        f"server = InferenceServer(echo, 40, 7, 3, name={name!r}); client = server.client()\n"
        "evaluator = BatchedEvaluator(echo, 40, 7, 3); asked = rows(np.random.default_rng(0), 3)\n"
        "check(*asked, *client.evaluate_many(*asked)); check(*asked, *evaluator.evaluate_many(*asked))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_request_survives_the_death_of_its_server(name: str, rng: np.random.Generator) -> None:
    """Killed with requests waiting; the next server of the name answers them."""
    server = start_server(name)
    client = Client(name)
    asked = rows(rng, 4)
    stopped(server)
    pending = [client.submit_many(*asked) for _ in range(5)]
    server.kill()
    server.communicate()
    with pytest.raises(ServerGone, match="died and was not restarted in time"):
        client.evaluate_many(*asked, timeout=0.0)
    with InferenceServer(echo, *WIDTHS, name=name, slots=32, rows_per_slot=16) as successor:
        for handle in pending:
            check(*asked, *handle.result())
            assert handle.version == successor.version
        assert successor.version > 0


def test_request_is_sent_again_where_the_next_server_has_other_sizes(name: str, rng: np.random.Generator) -> None:
    server = start_server(name)
    client = Client(name)
    asked = rows(rng, 4)
    stopped(server)
    pending = client.submit_many(*asked)
    server.kill()
    server.communicate()
    with InferenceServer(echo, *WIDTHS, name=name, slots=8):
        check(*asked, *pending.result())


def test_dead_clients_blocks_are_freed(name: str) -> None:
    with InferenceServer(echo, *WIDTHS, name=name, slots=8) as server:
        for seed in range(4):
            program = start_client(name, seed)
            until(lambda: server.stats()["clients"] == 1)
            program.kill()
            program.communicate()
            until(lambda: server.stats()["clients"] == 0)
        until(lambda: {s for w in range(8) for s in server._memory.segment.slot_states(w)} == {"free"})


def test_sweep_removes_dead_leftovers_and_nothing_that_lives(name: str) -> None:
    dead = f"/shmzero-test-{secrets.token_hex(6)}"
    foreign = f"/other-{secrets.token_hex(6)}"
    for path in (dead, foreign):
        os.close(posix_ipc.SharedMemory(path, posix_ipc.O_CREX, mode=0o600, size=4096).fd)
    try:
        with InferenceServer(echo, *WIDTHS, name=name):
            names = os.listdir("/dev/shm")
            assert dead[1:] not in names and foreign[1:] in names
            sweep_leftovers()
            assert f"shmzero-{name}" in os.listdir("/dev/shm")
    finally:
        posix_ipc.unlink_shared_memory(foreign)


@pytest.mark.timeout(600 + 5 * KILLS)
def test_kills_of_clients_and_servers_at_random_moments(name: str) -> None:
    """Every answer is its own row's, every call of a living client is answered, nothing is left."""
    choice = random.Random(KILLS)
    server = start_server(name)
    clients = [start_client(name, seed) for seed in range(3)]
    for seed in range(3, KILLS + 3):
        if choice.random() < 0.5:
            place = choice.randrange(3)
            assert clients[place].poll() is None, "a client ended by itself"
            time.sleep(choice.random() * 0.2)
            clients[place].kill()
            clients[place].communicate()
            clients[place] = start_client(name, seed)
        else:
            assert server.poll() is None, "the server ended by itself"
            time.sleep(choice.random() * 0.2)
            server.kill()
            server.communicate()
            server = start_server(name)
    for program in clients:
        out, _ = program.communicate("")
        assert program.returncode == 0 and int(out.split()[-1]) > 0
    found = find_service(name)
    assert found is not None
    segment = found[0]
    until(lambda: segment.owners() == [])
    until(lambda: {s for w in range(segment.num_workers) for s in segment.slot_states(w)} == {"free"})
    server.terminate()
    server.communicate()
    assert server.returncode == 0


# --- what is not a service ----------------------------------------------------------------------------------


def test_attach_mangled_headers_raise_segment_corrupt(rng: np.random.Generator) -> None:
    memory = create_private(1, 2, 1, 4, *WIDTHS, "float32")
    whole = os.pread(memory.fd, memory.segment.bytes, 0)
    fd = os.memfd_create("fuzz")
    os.pwrite(fd, whole, 0)
    _core.Segment.attach(fd)
    for case in range(FUZZ):
        os.ftruncate(fd, len(whole))
        head = bytearray(whole[:4096])
        if case % 4 == 0:
            os.ftruncate(fd, int(rng.integers(0, len(whole))))
            os.pwrite(fd, bytes(head)[: os.fstat(fd).st_size], 0)
        elif case % 4 == 1:
            head[8:128] = rng.bytes(120)
            os.pwrite(fd, bytes(head), 0)
        elif case % 4 == 2:
            at = int(rng.choice([0, 8, 12, 16, 24, 40, 48, 52, 56, 60, 64, 68, 72, 76]))
            head[at] ^= int(rng.integers(1, 256))
            os.pwrite(fd, bytes(head), 0)
        else:
            sizes = rng.integers(0, 2**32, 8, dtype=np.uint32) >> rng.integers(0, 32, 8, dtype=np.uint32)
            head[48:80] = sizes.tobytes()
            os.pwrite(fd, bytes(head), 0)
        with pytest.raises(SegmentCorrupt):
            _core.Segment.attach(fd)
    os.close(fd)
    memory.close()


def test_server_and_client_survive_garbage_under_their_name(name: str, rng: np.random.Generator) -> None:
    """A sound header and garbage behind it, or no header at all: the client waits or says so, the server serves."""
    asked = rows(rng, 4)
    sizes = (1, 4, 1, 8, *WIDTHS, "float32")
    memory = create_private(*sizes)
    header = os.pread(memory.fd, 4096, 0)
    memory.close()
    for case in range(GARBAGE):
        shm = posix_ipc.SharedMemory(f"/shmzero-{name}", posix_ipc.O_CREX, mode=0o600)
        body = np.frombuffer(rng.bytes(memory.segment.bytes - 4096), np.uint64).copy()
        if case % 4 == 1:
            body[rng.random(len(body)) < 0.95] = 0  # some of these are sound enough to be taken over
        os.pwrite(shm.fd, (header if case % 2 else rng.bytes(4096)) + body.tobytes(), 0)
        os.close(shm.fd)
        with pytest.raises(ServerGone, match="nobody serves"):
            Client(name, connect_timeout=0.0)
        with InferenceServer(echo, *WIDTHS, name=name, slots=4, rows_per_slot=8) as server:
            check(*asked, *server.client().evaluate_many(*asked))


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
        until(lambda: sum(evaluator._service.segment.slot_states(w) == ["ready"] for w in range(16)) == 7)
        let_go.set()
        for each, answer in zip(asked, answers, strict=True):
            check(*each, *answer.result())
        assert sizes == [1, 3, 21]
        with pytest.raises(TypeError, match="belongs to its process"):
            pickle.dumps(evaluator)
    with pytest.raises(ServerGone):
        evaluator.evaluate_many(*asked[0])


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


# --- the command ----------------------------------------------------------------------------------------------


def test_serve_stats_follow_and_leaving_on_a_signal(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    weights = tmp_path / "w.safetensors"
    module = make_module()
    with torch.no_grad():
        module.value.bias.add_(1.0)
    save_file(module.state_dict(), weights)
    server = start_server(name, "--weights", weights, "--follow", "--stats", "--json", "--device", "cpu", model="make_module")
    client = Client(name)
    states, masks = rows(np.random.default_rng(2), 5)
    with torch.no_grad():
        first = module(torch.from_numpy(states), torch.from_numpy(masks))[1].numpy()
        assert np.allclose(client.evaluate_many(states, masks)[1], first, atol=1e-6) and client.version == 0
        module.value.bias.add_(1.0)
        expected = module(torch.from_numpy(states), torch.from_numpy(masks))[1].numpy()
    save_file(module.state_dict(), tmp_path / "new")
    (tmp_path / "new").replace(weights)
    until(lambda: np.allclose(client.evaluate_many(states, masks)[1], expected, atol=1e-6))
    assert client.version == 1
    assert server.stderr is not None
    line = ""
    while "rows/s" not in line:
        line = server.stderr.readline()
    assert "wait p50" in line and "clients" in line
    server.terminate()
    server.terminate()
    out, _ = server.communicate()
    assert server.returncode == 0 and '"version": 1' in out.splitlines()[-1]


def test_serve_stats_fit_a_terminal_of_80_columns(name: str) -> None:
    """Rates, waiting times, clients, weights and batch sizes, none of them cut."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "shmzero.serve", "--name", name, "--model", "tests.service_programs:make_echo",
         "--state-dim", str(STATE_DIM), "--action-dim", str(ACTION_DIM), "--value-dim", str(VALUE_DIM), "--stats"],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    client, rng, seen = unattached(name), np.random.default_rng(3), ""
    try:
        while not re.search(r"of rows: \d", seen):
            seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(ours, 65536).decode())
            for n in (1, 2, 4, 8, 16, 32, 64, 100):
                client.evaluate_many(*rows(rng, n))
    finally:
        process.terminate()
        process.wait()
        os.close(ours)
    shown = seen[seen.rindex("rows/s") - 20 :]
    for words in ("rows/s, ", "batches/s", "wait p50 ", "p99 ", "1 clients, weights 0", "batches of rows: "):
        assert words in shown
    assert "…" not in seen and max(map(len, re.split(r"[\r\n]+", seen))) <= 80


def test_serve_follow_goes_on_after_weights_that_were_not_taken_up_in_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from shmzero import serve

    model = Holding()

    class Held(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(1))

        def forward(self, states: Any, masks: Any) -> Any:
            policies, values = model(states, masks)
            return policies, values + self.shift

    monkeypatch.setattr(serve, "load_model", lambda text: Held())
    monkeypatch.setattr(serve, "SWAP_S", 0.01)
    weights, stop = tmp_path / "w.safetensors", threading.Event()
    save_file({"shift": torch.zeros(1)}, weights)
    config = serve.ServeConfig(
        name=name, model="a:b", state_dim=STATE_DIM, action_dim=ACTION_DIM, value_dim=VALUE_DIM,
        weights=weights, follow=True, device="cpu",
    )  # fmt: skip
    asked, said = held(np.random.default_rng(1), 1), ""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve.run, config, stop)
        try:
            client = Client(name)
            pending = client.submit_many(*asked)
            model.holds.wait()
            save_file({"shift": torch.ones(1)}, tmp_path / "new")
            (tmp_path / "new").replace(weights)
            while said.count("still the old weights, trying again: weights were not taken up") < 2:
                said += capfd.readouterr().err
                assert not running.done(), running.exception()
            model.let_go.set()
            check(*asked, *pending.result())
            until(lambda: np.array_equal(client.evaluate_many(*asked)[1], echo(*asked)[1] + 1))
        finally:
            model.let_go.set()
            stop.set()
        assert running.result()["version"] == 1


def test_serve_without_a_model_serves_blobs_own_network_and_swaps_its_checkpoint(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from shmzero.config import NETS
    from shmzero.evaluators import NetEvaluator
    from shmzero.net import BlobNet, save_checkpoint
    from shmzero.serve import ServeConfig, make_server

    save_checkpoint(BlobNet(NETS["small"], seed=5), tmp_path / "a.safetensors")
    save_checkpoint(BlobNet(NETS["small"], seed=6), tmp_path / "b.safetensors")
    threads = torch.get_num_threads()
    config = ServeConfig(
        name=name, net="small", compile=False, precision="fp32", device="cpu", weights=tmp_path / "a.safetensors"
    )
    deal = _core.Round.deal(players=4, cards=5, trump=1, seed=11)
    with make_server(config) as server:
        client = server.client()
        for seed in (5, 6):
            direct = NetEvaluator(BlobNet(NETS["small"], seed=seed))
            expected = direct.evaluate_many(deal.features()[None], deal.mask()[None])
            found = client.evaluate_many(deal.features()[None], deal.mask()[None])
            assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
            server.swap(str(tmp_path / "b.safetensors"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "nonsense"), "module:factory"),
        (("--model", "no_such_module:make"), "cannot be imported"),
        (("--model", "tests.service_programs:nothing"), "has no function nothing"),
        (("--model", "tests.service_programs:make_echo", "--value-dim", "1", "--action-dim", "5"), "operands could not be broadcast"),
        (("--slots", "0"), "--slots is 0"),
        (("--model", "tests.service_programs:make_echo", "--state-dim", "-3"), "state_dim is -3"),
        (("--model", "tests.service_programs:make_echo", "--device", "nonsense"), "device is 'nonsense'"),
        (("--name", "a/b", "--model", "tests.service_programs:make_echo"), "service name"),
        (("--follow",), "--follow needs --weights"),
    ],
)
def test_serve_mistakes_are_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "shmzero.serve", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_import_of_the_client_loads_no_torch() -> None:
    code = "import shmzero, sys; shmzero.Client, shmzero.InferenceServer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_percentile_us_is_the_end_of_the_bin() -> None:
    waits = [0] * 128
    waits[40] = 99
    waits[80] = 1
    assert percentile_us(waits, 0.5) == _core.WAIT_BINS_NS[41] / 1000
    assert percentile_us(waits, 0.995) == _core.WAIT_BINS_NS[81] / 1000
    assert percentile_us([0] * 128, 0.5) == 0.0
