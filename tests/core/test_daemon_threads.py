"""Daemon threads are inside the core while the interpreter ends: the exit status stays the program's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN_STATUS = 7

HEAD = """
import os, sys, threading
import numpy as np
import shmzero
from shmzero import _core
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.play import play_settings
from shmzero.mcts.evaluators import UniformEvaluator

THREADS = 8
LIGHT = SearchConfig(determinizations=1, simulations=4)
inside = [threading.Event() for _ in range(THREADS)]

def run(body):
    def forever(thread):
        while True:
            body(thread)
            inside[thread].set()
    for thread in range(THREADS):
        threading.Thread(target=forever, args=(thread,), daemon=True).start()
    for event in inside:
        event.wait()
"""

SERVICE = """
def echo(states, masks):
    return states[:, :7], states[:, :3]
server = shmzero.InferenceServer(echo, state_dim=40, action_dim=7, value_dim=3, slots=64)
clients = [server.client() for _ in range(THREADS)]
states, masks = np.zeros((30, 40), np.float32), np.ones((30, 7), bool)
"""

PROGRAMS = {
    "search": """
deal = shmzero.Round.deal(seed=3)
run(lambda thread: shmzero.search(deal, UniformEvaluator(), LIGHT, seed=thread))
""",
    "play_rounds": "run(lambda thread: shmzero.play_rounds(UniformEvaluator(), 2, LIGHT, seed=thread))",
    "evaluate_many": SERVICE + "run(lambda thread: clients[thread].evaluate_many(states, masks))",
    "submit_many": SERVICE + "run(lambda thread: clients[thread].submit_many(states, masks).result())",
    "run_worker": """
def segment():
    fd = os.memfd_create("test")
    os.ftruncate(fd, _core.segment_bytes(1, 1, 2, 64))
    return _core.Segment.create(fd, 1, 1, 2, 64)
segments, play = [segment() for _ in range(THREADS)], play_settings(LIGHT)
def work(thread):
    (grants, ours), (theirs, records) = os.pipe(), os.pipe()
    os.close(ours)
    _core.run_worker(segments[thread], 0, grants, records, 2, play)
    for fd in (grants, theirs, records):
        os.close(fd)
run(work)
""",
    "replay": """
records = shmzero.play_rounds(UniformEvaluator(), 50, LIGHT)
run(lambda thread: _core.replay(records))
""",
}


@pytest.mark.parametrize("binding", PROGRAMS)
def test_daemon_threads_at_the_end_leave_the_exit_status_alone(binding: str) -> None:
    program = f"{HEAD}{PROGRAMS[binding]}\nsys.exit({OWN_STATUS})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == OWN_STATUS, ended.stderr


def test_bindings_give_up_the_gil_by_the_one_guard() -> None:
    for path in sorted((ROOT / "shmzero" / "csrc" / "bind").glob("*")):
        text = path.read_text()
        assert "gil_scoped" not in text, path.name
        assert "PyEval_" not in text or path.name == "bind.h", path.name
