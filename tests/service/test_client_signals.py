"""Signal handlers that raise in the middle of a client's calls: a time-out by SIGALRM, a Ctrl-C in a notebook."""

from __future__ import annotations

import dis
import functools
import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

from shmzero import BatchedEvaluator, Client, InferenceServer
from shmzero.service.connection import MOST_PORTS
from tests.support.service_programs import check, echo, rows
from tests.support.services import WIDTHS

# What is raised while something is being freed is printed, and goes no further.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Raised(BaseException):
    """By a signal handler. No Exception: numpy.array_equal takes every Exception for a difference."""


def evaluate(client: Client, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 1)
    policy, value = client.evaluate(states[0], masks[0])
    check(states, masks, policy[None], value[None])


def evaluate_many(client: Client, rng: np.random.Generator) -> None:
    check(*(asked := rows(rng, 5)), *client.evaluate_many(*asked))


def evaluate_split(client: Client, rng: np.random.Generator) -> None:
    check(*(asked := rows(rng, 50)), *client.evaluate_many(*asked))


def submit_and_drop(client: Client, rng: np.random.Generator) -> None:
    client.submit_many(*rows(rng, 3))


def submit_and_ask_again(client: Client, rng: np.random.Generator) -> None:
    asked = rows(rng, 50)
    pending = client.submit_many(*asked)
    try:
        answer = pending.result()
    finally:
        answer = pending.result()
        check(*asked, *answer)


def slot(client: Client, rng: np.random.Generator) -> None:
    states, masks = rows(rng, 4)
    with client.request(4) as r:
        r.states[:], r.masks[:] = states, r.pack_masks(masks)
        r.run()
        check(states, masks, r.policies, r.values)


WAYS = (evaluate, evaluate_many, evaluate_split, submit_and_drop, submit_and_ask_again, slot)


RUN_HANDLERS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD"}
"""Bytecodes in which Python runs signal handlers, at their end."""


@functools.cache
def places(code: CodeType) -> set[tuple[int, int]]:
    """Steps (from, to) between two bytecodes within which a signal handler may raise."""
    instructions = list(dis.get_instructions(code))
    return {
        (before.offset, before.argval if before.opname == "JUMP_BACKWARD" else after.offset)
        for before, after in itertools.pairwise(instructions)
        if before.opname in RUN_HANDLERS
    }


CLIENT_FILES = tuple(f"service/{name}.py" for name in ("client", "link", "pending", "slot_request", "connection"))
"""The client's code. Between its lines no handler may break anything."""


@contextmanager
def raising_at(number: int) -> Iterator[None]:
    """Raises at that one of the places where Python would run a signal handler within the client's code."""
    left = number
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(CLIENT_FILES):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= (last.get(frame, -1), frame.f_lasti) in places(frame.f_code)
            last[frame] = frame.f_lasti
            if left == 0:
                sys.settrace(None)
                raise Raised
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        last.clear()


def all_in_flight(client: Client, rng: np.random.Generator) -> None:
    """As many requests at once as one client may have, each answered with its own rows."""
    with ExitStack() as stack:
        requests = [stack.enter_context(client.request(2)) for _ in range(MOST_PORTS)]
        asked = [rows(rng, 2) for _ in requests]
        for request, (states, masks) in zip(requests, asked, strict=True):
            request.states[:], request.masks[:] = states, request.pack_masks(masks)
        for request, (states, masks) in zip(requests, asked, strict=True):
            request.run()
            check(states, masks, request.policies, request.values)


@pytest.mark.parametrize("way", WAYS)
def test_exception_at_any_place_in_a_call_costs_no_port_and_no_block(
    name: str, rng: np.random.Generator, way: Callable[[Client, np.random.Generator], None]
) -> None:
    with InferenceServer(echo, *WIDTHS, name=name, slots=2 * MOST_PORTS, rows_per_slot=16) as server:
        first, second = server.client(), server.client()
        for number in itertools.count(1):
            try:
                with raising_at(number):
                    way(first, rng)
                break
            except Raised:
                pass
        assert number > 10
        with ExitStack() as stack:  # neither client has more than its half, and there are no more
            for _ in range(MOST_PORTS):
                stack.enter_context(second.request(1))
            all_in_flight(first, rng)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["service", "threads"])
def test_alarms_that_raise_cost_no_port_and_no_block(name: str, rng: np.random.Generator, kind: str) -> None:
    armed, raised = False, 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Raised

    with ExitStack() as stack:
        sizes = {"slots": MOST_PORTS, "rows_per_slot": 16}
        if kind == "service":
            client = stack.enter_context(InferenceServer(echo, *WIDTHS, name=name, **sizes)).client()  # type: ignore[arg-type]
        else:
            client = stack.enter_context(BatchedEvaluator(echo, *WIDTHS, **sizes))  # type: ignore[arg-type]
        stack.callback(
            signal.setitimer, signal.ITIMER_REAL, *signal.setitimer(signal.ITIMER_REAL, 0)
        )  # pytest-timeout's
        stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, handle))
        for way in itertools.cycle(WAYS):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1e-3))
                way(client, rng)
                armed = False
            except Raised:
                raised += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            armed = False
            if raised >= 200:
                break
        all_in_flight(client, rng)
