"""Programs around a service, each its own process: models for `shmzero.serve --model`, and clients that check every row."""

from __future__ import annotations

import os
import select
import sys
from typing import Any

import numpy as np

STATE_DIM, ACTION_DIM, VALUE_DIM = 40, 7, 3


def echo(states: Any, masks: Any) -> tuple[Any, Any]:
    """Answers that say which row they belong to."""
    return states[:, :ACTION_DIM] * masks, states[:, -VALUE_DIM:] + 1


def make_echo() -> Any:
    return echo


def make_raising() -> Any:
    """An echo that refuses a first state above 0.9."""

    def raising(states: Any, masks: Any) -> tuple[Any, Any]:
        if (states[:, 0] > 0.9).any():
            raise ArithmeticError("a state is too large")
        return echo(states, masks)

    return raising


def make_module() -> Any:
    """A torch module 40 -> 7 and 3."""
    import torch

    class Custom(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(STATE_DIM, 32)
            self.policy = torch.nn.Linear(32, ACTION_DIM)
            self.value = torch.nn.Linear(32, VALUE_DIM)

        def forward(self, states: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = torch.tanh(self.body(states))
            return torch.softmax(self.policy(hidden), 1) * masks, self.value(hidden)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Custom()


def rows(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    return rng.random((n, STATE_DIM), np.float32), rng.random((n, ACTION_DIM)) < 0.6


def check(states: Any, masks: Any, policies: Any, values: Any) -> None:
    expected = echo(states, masks)
    assert np.array_equal(policies, expected[0]), "a policy is another row's"
    assert np.array_equal(values, expected[1]), "a value is another row's"


def client_until_told(name: str, seed: int) -> None:
    """Asks in all ways and checks every row until standard input is closed; prints the number of rows."""
    from shmzero import Client

    rng = np.random.default_rng(seed)
    client = Client(name, connect_timeout=60.0)
    print("started", flush=True)
    num_rows = 0
    told = False
    while not told:
        n = int(rng.integers(1, 40))
        states, masks = rows(rng, n)
        way = int(rng.integers(4))
        if way == 0:
            policy, value = client.evaluate(states[0], masks[0], timeout=60.0)
            check(states[:1], masks[:1], policy[None], value[None])
        elif way == 1:
            check(states, masks, *client.evaluate_many(states, masks, timeout=60.0))
        elif way == 2:
            first, second = client.submit_many(states, masks), client.submit_many(states[::-1], masks[::-1])
            check(states[::-1], masks[::-1], *second.result(60.0))
            check(states, masks, *first.result(60.0))
        else:
            with client.request(min(n, client.max_rows), timeout=60.0) as r:
                r.states[:] = states[: len(r.states)]
                r.masks[:] = r.pack_masks(masks[: len(r.states)])
                r.run(timeout=60.0)
                check(states[: len(r.states)], masks[: len(r.states)], r.policies, r.values)
        num_rows += n
        told = bool(select.select([sys.stdin], [], [], 0)[0])
    client.close()
    print(num_rows, flush=True)


def idle_client(name: str, seed: int) -> None:
    """Has had every block of a service, does nothing until standard input is closed, and asks once more."""
    from shmzero import Client

    client = Client(name)
    asked = rows(np.random.default_rng(seed), 200)
    check(*asked, *client.evaluate_many(*asked))
    print("idle", flush=True)
    sys.stdin.read()
    check(*asked, *client.evaluate_many(*asked))
    print("answered", flush=True)


def many_clients(name: str, num_clients: int) -> None:
    """So many processes, each a client that checks 100 answers; fails where one of them does."""
    from shmzero import Client

    for seed in range(num_clients):
        if os.fork() == 0:
            code = 1
            try:
                rng, client = np.random.default_rng(seed), Client(name)
                for _ in range(100):
                    asked = rows(rng, int(rng.integers(1, 9)))
                    check(*asked, *client.evaluate_many(*asked))
                code = 0
            finally:
                os._exit(code)
    assert {os.wait()[1] for _ in range(num_clients)} == {0}


def client_of_module(name: str, seed: int) -> None:
    """Writes what a service answers to 100 rows; says whether torch was imported."""
    from shmzero import Client

    states, masks = rows(np.random.default_rng(seed), 100)
    with Client(name) as client:
        policies, values = client.evaluate_many(states, masks)
        policy, value = client.evaluate(states[0], masks[0])
    assert "torch" not in sys.modules
    np.save(sys.stdout.buffer, np.concatenate([policies, values], axis=1))
    np.save(sys.stdout.buffer, np.concatenate([policy, value]))


if __name__ == "__main__":
    programs = {"check": client_until_told, "idle": idle_client, "many": many_clients, "module": client_of_module}
    programs[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
