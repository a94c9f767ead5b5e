"""Modules and functions of other people's behind a service: what starts, what they return, weights that they take up."""

from __future__ import annotations

import copy
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from shmzero import BatchedEvaluator, ConfigError, InferenceServer
from tests.support.service_programs import ACTION_DIM, STATE_DIM, VALUE_DIM, check, echo, rows
from tests.support.services import WIDTHS


class Net(torch.nn.Module):
    """40 -> 7 and 3; a seed makes its weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = torch.nn.Linear(STATE_DIM, ACTION_DIM)
            self.value = torch.nn.Linear(STATE_DIM, VALUE_DIM)

    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(self.policy(states), 1) * masks, self.value(states)


def asked(module: Any, states: Any, masks: Any) -> tuple[Any, Any]:
    with torch.no_grad():
        policies, values = module(torch.from_numpy(states), torch.from_numpy(masks))
    return policies.numpy(), values.numpy()


def answers_as(client: Any, module: Any, rng: np.random.Generator) -> bool:
    states, masks = rows(rng, 10)
    pairs = zip(client.evaluate_many(states, masks), asked(module, states, masks), strict=True)
    return all(np.allclose(found, wanted, atol=1e-6) for found, wanted in pairs)


# --- new weights ------------------------------------------------------------------------------------------


class Cached(Net):
    """Its value comes from what was made of the weights once."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.made = (2 * self.value.weight).detach().clone()

    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(self.policy(states), 1) * masks, states @ self.made.T


class AllCached(Cached):
    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(ACTION_DIM) * masks, states @ self.made.T


def frozen(seed: int) -> Any:
    return torch.jit.freeze(torch.jit.script(Net(seed).eval()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [frozen, Cached])
def test_swap_that_the_module_does_not_follow_is_refused_and_the_old_weights_stay(
    make: Any, name: str, rng: np.random.Generator
) -> None:
    with InferenceServer(make(0), *WIDTHS, name=name, device="cpu") as server:
        client = server.client()
        for weights in (make(1), make(1).state_dict()) if make is frozen else (make(1),):
            with pytest.raises(ConfigError, match="keeps its weights where a swap does not reach"):
                server.swap(weights)
            assert answers_as(client, make(0), rng) and client.version == server.version == 0
        assert server.swap(make(0)) == 1 and answers_as(client, make(0), rng)


def test_swap_of_weights_that_change_no_answer_is_refused_and_leaves_none_of_them() -> None:
    module = AllCached(0)
    before = copy.deepcopy(module.state_dict())
    with BatchedEvaluator(module, *WIDTHS, device="cpu", copy=False) as served:
        with pytest.raises(ConfigError, match="no answer changed with the weights"):
            served.swap(Net(1).state_dict())
        assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
        assert served.swap(before) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda seed: torch.jit.script(Net(seed)),
        lambda seed: torch.compile(Net(seed), backend="eager"),
        lambda seed: torch.ao.quantization.quantize_dynamic(Net(seed), {torch.nn.Linear}),
        lambda seed: torch.nn.Sequential(Net(seed))[0].half().float(),
    ],
    ids=["script", "compile", "quantised", "plain"],
)
def test_swap_of_a_module_is_followed_whatever_kind_it_is(make: Any, rng: np.random.Generator) -> None:
    with BatchedEvaluator(make(0), *WIDTHS, device="cpu") as served:
        assert answers_as(served, make(0), rng)
        assert served.swap(make(1)) == 1 and answers_as(served, make(1), rng)
        assert served.swap(make(1)) == 2 and answers_as(served, make(1), rng)
        assert served.swap(make(2).state_dict()) == 3 and answers_as(served, make(2), rng)


def test_swap_of_a_module_in_float64_is_cast(rng: np.random.Generator) -> None:
    with BatchedEvaluator(Net(0), *WIDTHS, device="cpu") as served:
        assert served.swap(Net(1).double()) == 1 and answers_as(served, Net(1), rng)


def test_swap_of_a_module_that_draws_its_answers_is_not_compared() -> None:
    class Drawing(Net):
        def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            policies, values = super().forward(states, masks)
            return policies, values + torch.randn_like(values)

    with BatchedEvaluator(Drawing(0), *WIDTHS, device="cpu") as served:
        assert served.swap(Drawing(1)) == 1
        assert served.swap(Drawing(2).state_dict()) == 2


def test_swap_to_weights_that_the_module_fails_with_is_refused_and_the_old_stay(rng: np.random.Generator) -> None:
    class Choosy(Net):
        def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            if (self.value.bias > 5).any():
                raise OverflowError("too large")
            return super().forward(states, masks)

    weights = {name: tensor + 10 for name, tensor in Net(1).state_dict().items()}
    with BatchedEvaluator(Choosy(0), *WIDTHS, device="cpu") as served:
        with pytest.raises(ConfigError, match=r"tried with rows of the server's own \(states \[4, 40\].*OverflowError"):
            served.swap(weights)
        assert answers_as(served, Net(0), rng) and served.version == 0


def test_swap_to_weights_that_answer_nan_is_refused(rng: np.random.Generator) -> None:
    broken = Net(1)
    with torch.no_grad():
        broken.value.bias.fill_(torch.nan)
    with BatchedEvaluator(Net(0), *WIDTHS, device="cpu") as served:
        for weights in (broken, broken.state_dict()):
            with pytest.raises(ConfigError, match="with NaN or infinity, the old ones with numbers"):
                served.swap(weights)
        assert answers_as(served, Net(0), rng) and served.version == 0


@pytest.mark.parametrize(
    ("served", "given"),
    [
        (lambda m: m, lambda m: torch.compile(m, backend="eager")),
        (lambda m: torch.compile(m, backend="eager"), lambda m: m),
        (lambda m: m, lambda m: torch.nn.DataParallel(torch.compile(m, backend="eager"))),  # type: ignore[type-var]
        (lambda m: torch.nn.DataParallel(m), lambda m: m),
    ],
    ids=["compiled", "plain into compiled", "parallel of compiled", "plain into parallel"],
)
def test_swap_takes_names_with_the_prefixes_of_compile_and_data_parallel(
    served: Any, given: Any, tmp_path: Any, rng: np.random.Generator
) -> None:
    from safetensors.torch import save_file

    with BatchedEvaluator(served(Net(0)), *WIDTHS, device="cpu") as evaluator:
        assert evaluator.swap(given(Net(1))) == 1 and answers_as(evaluator, Net(1), rng)
        assert evaluator.swap(given(Net(2)).state_dict()) == 2 and answers_as(evaluator, Net(2), rng)
        save_file(given(Net(3)).state_dict(), tmp_path / "w.safetensors")
        assert evaluator.swap(tmp_path / "w.safetensors") == 3 and answers_as(evaluator, Net(3), rng)


# --- the server's own rows ----------------------------------------------------------------------------------


class Sampling(Net):
    """Needs a legal action in every row."""

    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.policy(states).masked_fill(~masks, -torch.inf)
        return torch.distributions.Categorical(logits=logits, validate_args=True).probs, self.value(states)


class Attending(Net):
    """Its actions are tokens; those that are not legal are padding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        assert masks.any(dim=1).all(), "a row without any token"
        tokens = states[:, : 8 * 5].reshape(len(states), 5, 8)
        found = self.encoder(tokens, src_key_padding_mask=~masks[:, :5])
        return found.mean(dim=2)[:, [0, 1, 2, 3, 4, 0, 0]] * masks, self.value(states)


class OfBits(Net):
    """Takes zeros and ones alone."""

    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        if not ((states == 0) | (states == 1)).all():
            raise ValueError("a state is neither 0 nor 1")
        return super().forward(states, masks)


@pytest.mark.parametrize("make", [Sampling, Attending, OfBits])
def test_module_that_takes_every_real_row_is_served(make: Any, rng: np.random.Generator) -> None:
    module = make(0).eval()
    states, masks = rows(rng, 10)
    states, masks[:, 0] = states.round(), True
    with BatchedEvaluator(module, *WIDTHS, device="cpu") as served:
        for found, wanted in zip(served.evaluate_many(states, masks), asked(module, states, masks), strict=True):
            assert np.allclose(found, wanted, atol=1e-5)
        assert served.swap(make(1)) == 1


def test_refusal_at_the_start_says_that_the_row_was_the_servers_own() -> None:
    def picky(states: Any, masks: Any) -> Any:
        raise KeyError("no such card")

    with pytest.raises(ConfigError) as caught:
        BatchedEvaluator(picky, *WIDTHS)
    said = str(caught.value)
    assert "rows of the server's own (states [1, 40] uniform in 0..1, all 7 actions legal)" in said
    assert "KeyError" in said and "no such card" in said and "\n" not in said


def test_module_in_float64_is_refused_at_the_start_and_float64_answers_are_cast(rng: np.random.Generator) -> None:
    class Double(Net):
        def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            policies, values = super().forward(states.double(), masks)
            return policies, values

    with pytest.raises(ConfigError, match=r"rows of the server's own .*dtype"):
        BatchedEvaluator(Net(0).double(), *WIDTHS, device="cpu")
    with BatchedEvaluator(Double(0).double(), *WIDTHS, device="cpu") as served:
        states, masks = rows(rng, 10)
        assert np.allclose(
            served.evaluate_many(states, masks)[1], asked(Double(0).double(), states, masks)[1], atol=1e-6
        )


# --- modules that cannot be copied ----------------------------------------------------------------------------------


class Locked(Net):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.lock = threading.Lock()

    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        with self.lock:
            return super().forward(states, masks)


class Generating(Net):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.numbers = (number for number in range(3))


def normed(seed: int) -> Any:
    module = Net(seed)
    torch.nn.utils.weight_norm(module.policy)
    module(torch.zeros(1, STATE_DIM), torch.ones(1, ACTION_DIM, dtype=torch.bool))
    return module


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [Locked, Generating, normed])
def test_module_that_cannot_be_copied_is_served_as_it_is(make: Any, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match="the module cannot be copied: .*; copy=False serves the module itself"):
        BatchedEvaluator(make(0), *WIDTHS, device="cpu")
    with BatchedEvaluator(make(0), *WIDTHS, device="cpu", copy=False) as served:
        assert answers_as(served, make(0), rng)
        with pytest.raises(ConfigError, match=r"cannot be copied: .*; give its state_dict\(\) instead"):
            served.swap(make(1))
        assert served.swap(make(1).state_dict()) == 1 and answers_as(served, make(1), rng)


def test_module_served_as_it_is_takes_up_weights_itself(name: str) -> None:
    module = Net(0)
    with InferenceServer(module, *WIDTHS, name=name, device="cpu", copy=False) as server:
        server.swap(Net(1))
        assert torch.equal(module.value.weight, Net(1).value.weight) and not module.training


def test_device_that_a_module_cannot_be_moved_to_has_words_of_its_own() -> None:
    with pytest.raises(ConfigError, match="the module cannot be moved to cpu: .*meta"):
        BatchedEvaluator(Net(0).to("meta"), *WIDTHS, device="cpu")
    with pytest.raises(ConfigError, match="device is 'meta'; allowed: auto, cpu, cuda and cuda:N"):
        BatchedEvaluator(Net(0), *WIDTHS, device="meta")
    with pytest.raises(ConfigError, match="device is 'nonsense': "):
        BatchedEvaluator(Net(0), *WIDTHS, device="nonsense")


# --- gradients within a call -----------------------------------------------------------------------------------------


class Gradient(Net):
    """Its value is the slope of another one."""

    def forward(self, states: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        states = states.requires_grad_()
        policies, values = super().forward(states, masks)
        (slope,) = torch.autograd.grad(values.square().sum(), states, create_graph=True)
        return policies, slope[:, :VALUE_DIM]


def test_module_that_takes_gradients_is_served_with_grad(rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match="; grad=True lets a module take gradients"):
        BatchedEvaluator(Gradient(0), *WIDTHS, device="cpu")
    states, masks = rows(rng, 10)
    with BatchedEvaluator(Gradient(0), *WIDTHS, device="cpu", grad=True) as served, torch.no_grad():
        for seed in (0, 1):
            with torch.enable_grad():
                wanted = Gradient(seed)(torch.from_numpy(states.copy()), torch.from_numpy(masks))
            for _ in range(3):
                for found, right in zip(served.evaluate_many(states, masks), wanted, strict=True):
                    assert np.allclose(found, right.detach().numpy(), atol=1e-5)
            served.swap(Gradient(1))


# --- what a model returns -----------------------------------------------------------------------------------------------


class Named(NamedTuple):
    value: Any
    policy: Any


@pytest.mark.parametrize(
    "given",
    [
        lambda p, v: [p, v],
        lambda p, v: (p, v, "more"),
        lambda p, v: {"value": v, "policy": p, "hidden": None},
        lambda p, v: Named(v, p),
    ],
    ids=["list", "three", "dict", "named"],
)
@pytest.mark.parametrize("as_module", [False, True])
def test_answer_of_another_form_is_taken(given: Any, as_module: bool, rng: np.random.Generator) -> None:
    class Module(torch.nn.Module):
        def forward(self, states: Tensor, masks: Tensor) -> Any:
            return given(*echo(states, masks))

    model = Module() if as_module else lambda states, masks: given(*echo(states, masks))
    with BatchedEvaluator(model, *WIDTHS, device="cpu") as served:
        check(*(asked := rows(rng, 5)), *served.evaluate_many(*asked))


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (lambda p, v: p, r"it returned Tensor float32 \[1, 7\]"),
        (lambda p, v: None, "it returned NoneType"),
        (lambda p, v: {"logits": p, "value": v}, r"it returned dict \(logits: Tensor float32 \[1, 7\], value: Tensor"),
        (lambda p, v: (p.to(torch.complex64), v), r"tuple \(Tensor complex64 \[1, 7\], Tensor float32 \[1, 3\]\)"),
        (lambda p, v: (p, 0.5), r"tuple \(Tensor float32 \[1, 7\], float\)"),
        (lambda p, v: (p,), r"tuple \(Tensor float32 \[1, 7\]\)"),
        (lambda p, v: torch.stack([p, p]), r"it returned Tensor float32 \[2, 1, 7\]"),
    ],
)
def test_answer_that_cannot_be_taken_is_shown_beside_what_is_wanted(given: Any, came: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, states: Tensor, masks: Tensor) -> Any:
            return given(*echo(states, masks))

    with pytest.raises(ConfigError, match=came + r".*policies \[1, 7\] and values \[1, 3\], torch tensors") as caught:
        BatchedEvaluator(Module(), *WIDTHS, device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"policies \[1, 6\] and values \[1, 3\]; .* \(it was tuple \(Tensor float32"):
        BatchedEvaluator(type("M", (Module,), {"forward": lambda self, s, m: (s[:, :6], s[:, :3])})(), *WIDTHS)
