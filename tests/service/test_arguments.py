"""Arguments of the service's classes: what cannot be is refused by its own name, before anything is made."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from shmzero import BatchedEvaluator, Client, ConfigError, InferenceServer
from tests.support.service_programs import check, echo, rows
from tests.support.services import WIDTHS, until

NAN = float("nan")
BAD = [
    ("max_batch", (0, -1, 2.5, "64", True, None, 2**21)),
    ("slots", (0, 1.0, "8", 10**6)),
    ("rows_per_slot", (0, "8", NAN, 2**21)),
    ("timeout_ms", (-1, NAN, float("inf"), "2", None, 1e5)),
    ("spin_us", (-1, NAN, "50", 1e6, True)),
    ("state_dim", (0, "40", 4.0)),
    ("action_dim", (0, None)),
    ("value_dim", (-3, "1")),
    ("wire", ("float64", None, 16)),
]


@pytest.mark.parametrize("kind", [InferenceServer, BatchedEvaluator])
@pytest.mark.parametrize(("argument", "values"), BAD)
def test_service_argument_that_cannot_be_is_refused_by_its_name(
    kind: Any, argument: str, values: tuple[Any, ...]
) -> None:
    before = sorted(os.listdir("/dev/shm"))
    sizes = dict(zip(("state_dim", "action_dim", "value_dim"), WIDTHS, strict=True))
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{argument} is {re.escape(repr(value))}; allowed: [^\n]+$"):
            kind(echo, **(sizes | {argument: value}))
    assert sorted(os.listdir("/dev/shm")) == before


def test_service_takes_numpys_numbers(name: str, rng: np.random.Generator) -> None:
    sizes: Any = {
        "max_batch": np.int64(64),
        "slots": np.int32(4),
        "rows_per_slot": np.uint8(8),
        "timeout_ms": np.float32(1),
    }
    with InferenceServer(echo, *map(np.int64, WIDTHS), name=name, **sizes) as server:  # type: ignore[arg-type]
        check(*(asked := rows(rng, 3)), *server.client().evaluate_many(*asked, timeout=np.float32(30)))


def test_name_that_is_none_is_refused() -> None:
    for given in (5, "", "a/b", b"name"):
        for make in (lambda g: InferenceServer(echo, *WIDTHS, name=g), Client):
            with pytest.raises(ConfigError, match=re.escape(f"service name is {given!r}")):
                make(given)


@pytest.mark.parametrize("timeout", ["30", NAN, True, [1]])
def test_timeout_that_is_no_number_is_refused(client: Client, rng: np.random.Generator, timeout: Any) -> None:
    states, masks = rows(rng, 2)
    named = rf"timeout is {re.escape(repr(timeout))}; allowed: a number of seconds, or None"
    pending = client.submit_many(states, masks)
    for call in (
        lambda: client.evaluate(states[0], masks[0], timeout=timeout),
        lambda: client.evaluate_many(states, masks, timeout=timeout),
        lambda: client.request(2, timeout=timeout),
        lambda: pending.result(timeout),
        lambda: Client(client.name, connect_timeout=timeout),
    ):
        with pytest.raises(ConfigError, match=named):
            call()
    check(states, masks, *pending.result())


def test_timeout_none_waits_until_there_is_an_answer(client: Client, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 40)
    check(states, masks, *client.evaluate_many(states, masks, timeout=None))
    policy, value = client.evaluate(states[0], masks[0], timeout=None)
    check(states[:1], masks[:1], policy[None], value[None])
    check(states, masks, *client.submit_many(states, masks).result(None))
    with client.request(1, timeout=None) as r:
        r.states[:], r.masks[:] = states[:1], r.pack_masks(masks[:1])
        r.run(None)
        check(states[:1], masks[:1], r.policies, r.values)
    with Client(client.name, connect_timeout=None) as other:
        until(lambda: other.max_rows == 16)


@pytest.mark.parametrize(
    "value",
    ["0.5", b"0.5", 1 + 2j, Decimal("0.5"), None, np.datetime64("2020-01-01"), 2**70],
    ids=lambda v: type(v).__name__,
)
def test_rows_that_are_no_real_numbers_are_refused_with_one_line(client: Client, value: Any) -> None:
    row, mask = [value] * WIDTHS[0], np.ones(WIDTHS[1], bool)
    for states in (row, np.array(row)):
        with pytest.raises(ValueError, match=r"^states has dtype [^\n]+; allowed: real numbers[^\n]*$"):
            client.evaluate(states, mask)
        with pytest.raises(ValueError, match=r"^states has dtype [^\n]+; allowed: real numbers[^\n]*$"):
            client.evaluate_many([states], mask[None])
    with pytest.raises(ValueError, match=r"^states cannot be made an array: [^\n]+$"):
        client.evaluate_many([[0.5], [0.5, 0.5]], np.ones((2, WIDTHS[1]), bool))


def test_request_of_rows_that_are_no_number_is_refused(client: Client) -> None:
    for given in (0, 17, "2", 2.0, None):
        with pytest.raises(ValueError, match=rf"^rows is {re.escape(repr(given))}; a slot of service "):
            client.request(given)  # type: ignore[arg-type]
