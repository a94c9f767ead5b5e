"""A service's server: models and devices that fail or do not fit, weights."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmzero import BatchedEvaluator, ConfigError, InferenceServer, ModelFailed, _core
from shmzero.inference.device import Staging
from shmzero.inference.messages import TakeWeights, WeightsTaken
from shmzero.inference.stand_in import RowFunctionDevice
from shmzero.service.host import LoopControl
from shmzero.service.stats import percentile_us
from tests.support.service_programs import (
    ACTION_DIM,
    STATE_DIM,
    VALUE_DIM,
    check,
    echo,
    make_module,
    make_raising,
    rows,
)
from tests.support.services import WIDTHS, Holding, constant, held, until


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


class TwoStages:
    """An echo with two batches in flight, done when they are waited for, and before that where `is_quick`."""

    num_buffers = 2
    max_batch = 8
    is_quick = False

    def __init__(self, wire: str = "float32") -> None:
        self._buffers = [
            Staging(np.zeros((8, STATE_DIM), wire), np.zeros(8, np.uint64),
                    np.zeros((8, ACTION_DIM), np.float32), np.zeros((8, VALUE_DIM), np.float32))
            for _ in range(2)
        ]  # fmt: skip
        self.launched = threading.Event()

    def staging(self, buffer: int) -> Staging:
        return self._buffers[buffer]

    def launch(self, buffer: int, rows: int) -> None:
        self.launched.set()

    def finished(self, buffer: int) -> bool:
        return self.is_quick

    def wait(self, buffer: int) -> None:
        staging = self._buffers[buffer]
        masks = np.zeros((8, ACTION_DIM), np.bool_)
        _core.unpack_masks(staging.masks[:, None], masks)
        staging.policies[:], staging.values[:] = echo(staging.features, masks)

    def swap(self, weights: Any) -> None:
        pass

    def poll(self) -> str | None:
        return None


def test_batch_that_fails_with_another_in_flight_is_run_again_request_by_request(
    name: str, rng: np.random.Generator
) -> None:
    class Refusing(TwoStages):
        """Refuses a first state above 0.9, when it is waited for."""

        def __init__(self) -> None:
            super().__init__()
            self.let_go = threading.Event()
            self.rows = [0, 0]

        def launch(self, buffer: int, rows: int) -> None:
            self.rows[buffer] = rows
            super().launch(buffer, rows)

        def finished(self, buffer: int) -> bool:
            return self.let_go.is_set()

        def wait(self, buffer: int) -> None:
            self.let_go.wait()
            if (self._buffers[buffer].features[: self.rows[buffer], 0] > 0.9).any():
                raise ModelFailed("a state is too large")
            super().wait(buffer)

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


def test_server_that_cannot_start_its_threads_leaves_no_thread_file_or_name(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def one_at_most(thread: threading.Thread) -> None:
        if thread.name == "shmzero-reaper":
            raise RuntimeError("can't start new thread")
        start(thread)

    open_files = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", one_at_most)
        for make in (lambda: InferenceServer(echo, *WIDTHS, name=name), lambda: BatchedEvaluator(echo, *WIDTHS)):
            with pytest.raises(RuntimeError, match="new thread"):
                make()
    until(lambda: all(thread.name != "shmzero-serve" for thread in threading.enumerate()))
    assert os.listdir("/proc/self/fd") == open_files
    with InferenceServer(echo, *WIDTHS, name=name) as server:
        check(*(asked := rows(rng, 3)), *server.client().evaluate_many(*asked))


def test_server_closed_finishes_the_batches_in_flight(name: str, rng: np.random.Generator) -> None:
    device = TwoStages()
    with InferenceServer(device, *WIDTHS, name=name) as server:
        pending = server.client().submit_many(*(asked := rows(rng, 3)))
        device.launched.wait()
    check(*asked, *pending.result(0.0))


def test_swap_of_a_module_serves_the_new_weights_with_their_version(
    name: str, rng: np.random.Generator, tmp_path: Path
) -> None:
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
        assert server.swap(module) == 3


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
            late = pool.submit(server.swap, slow_to_try, 2.0)
            assert trying.wait(30)
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


@pytest.mark.slow
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
            handle = client.submit_many(states, np.ones((8, 7), bool))
            handle.result()
            return handle.version

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask, seed) for seed in range(3)]
            for number in range(1, 30):
                assert server.swap(constant(number)) == number
            done.set()
            assert [f.result() for f in asking] == [29, 29, 29]


def test_percentile_us_is_the_end_of_the_bin() -> None:
    waits = [0] * 128
    waits[40] = 99
    waits[80] = 1
    assert percentile_us(waits, 0.5) == _core.WAIT_BINS_NS[41] / 1000
    assert percentile_us(waits, 0.995) == _core.WAIT_BINS_NS[81] / 1000
    assert percentile_us([0] * 128, 0.5) == 0.0


@pytest.mark.slow
def test_swap_that_is_interrupted_after_any_call_leaves_the_next_one_free() -> None:
    """A Ctrl-C comes when a call has returned, and before anything is done about it."""

    def is_interrupted(control: LoopControl, call: int) -> bool:
        """Whether a swap that nobody takes up makes so many calls; it is interrupted after the last of these."""
        calls = 0

        def profile(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            if frame.f_code is LoopControl.swap.__code__ and event == "c_return":
                calls += 1
                if calls == call:
                    raise KeyboardInterrupt

        sys.setprofile(profile)
        try:
            control.swap({}, timeout=0.0)
        except (KeyboardInterrupt, TimeoutError):
            pass
        finally:
            sys.setprofile(None)
        return calls >= call

    call = 1
    while is_interrupted(control := LoopControl(0), call):
        with ThreadPoolExecutor(1) as pool:
            swap = pool.submit(control.swap, {}, timeout=60.0)
            while not swap.done():
                for command in control.commands():
                    assert isinstance(command, TakeWeights)
                    control.send(WeightsTaken(command.version))
            assert swap.result() == control.version
        call += 1
    assert call > 2
