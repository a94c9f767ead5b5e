"""A service for tests: names, servers, clients and models that are held up."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmzero import Client, InferenceServer, SearchConfig, _core
from shmzero.mcts.play import play_settings
from shmzero.service.client import unpickled
from tests.support.service_programs import ACTION_DIM, STATE_DIM, VALUE_DIM, echo, rows

ROOT = Path(__file__).parents[2]
WIDTHS = (STATE_DIM, ACTION_DIM, VALUE_DIM)


started: list[subprocess.Popen[str]] = []


@contextmanager
def worker_in_thread(segment: _core.Segment) -> Iterator[Future[None]]:
    """The loop of worker 0 at its first unit. It has to end before the block does."""
    grants, granted = os.pipe()
    records, recorded = os.pipe()
    settings = play_settings(SearchConfig(determinizations=1, simulations=4))
    try:
        os.write(granted, _core.pack_grant(0))
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(_core.run_worker, segment, 0, grants, recorded, 1, settings)
    finally:
        for fd in (grants, granted, records, recorded):
            os.close(fd)


@pytest.fixture
def name() -> Iterator[str]:
    """A name that nobody has; nothing may be left of it. Programs of a test that failed end with it."""
    fresh = f"test-{secrets.token_hex(6)}"
    yield fresh
    left = [program for program in started if program.poll() is None]
    started.clear()
    for program in left:
        program.kill()
        program.communicate()
    assert left or f"shmzero-{fresh}" not in os.listdir("/dev/shm")


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
        [sys.executable, "-m", "shmzero.serve", "--name", name, "--model", f"tests.support.service_programs:{model}",
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
        [sys.executable, "-m", "tests.support.service_programs", "check", name, str(seed)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    started.append(process)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def unattached(name: str) -> Client:
    """A client that has not looked for its server yet, as one that has just been unpickled."""
    return unpickled(name, None)


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


def constant(number: int) -> Any:
    """A model that answers with one number."""
    return lambda s, m: (np.full((len(s), 7), number, np.float32), np.full((len(s), 3), number, np.float32))
