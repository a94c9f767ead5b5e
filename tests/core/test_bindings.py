"""Wrong arguments to the core's bindings: an error that names the value, never a crash."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmzero import SearchConfig, _core
from shmzero.inference.device import new_staging
from shmzero.mcts.play import play_settings

ROOT = Path(__file__).parents[2]
SIZES = {"servers": 2, "workers": 2, "slots": 3, "rows": 4}
CONFIG = SearchConfig(determinizations=1, simulations=4)


def segment(**sizes: Any) -> _core.Segment:
    given = SIZES | sizes
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, _core.segment_bytes(**given))
        return _core.Segment.create(fd, **given)
    finally:
        os.close(fd)


def gathered(shared: _core.Segment, rows: int) -> tuple[_core.ServerPort, int]:
    """A server's port and a batch of so many rows, all of slot 0 of worker 0."""
    worker, server = _core.WorkerPort(shared, 0), _core.ServerPort(shared, 0, 1)
    assert worker.begin(0)
    worker.publish(0, rows)
    staging = new_staging(4)
    batch, num = server.gather(staging.features, staging.masks, 4)
    assert num == rows
    return server, batch


def test_indices_beyond_the_segment_are_refused_by_name() -> None:
    shared = segment()
    worker = _core.WorkerPort(shared, 1)
    for call, said in (
        (lambda: shared.slot_states(2), "worker is 2; allowed: 0..1"),
        (lambda: shared.worker_counters(9), "worker is 9"),
        (lambda: shared.server_counters(2), "server is 2; allowed: 0..1"),
        (lambda: _core.WorkerPort(shared, 2), "worker is 2; allowed: 0..1"),
        (lambda: _core.ServerPort(shared, 2, 1), "server is 2; allowed: 0..1"),
        (lambda: _core.slot_views(shared, 0, 3), "slot is 3; allowed: 0..2"),
        (lambda: worker.publish(0, 5), "rows is 5; allowed: 0..4"),
        (lambda: worker.publish(3, 1), "slot is 3; allowed: 0..2"),
        *((lambda name=name: getattr(worker, name)(2**31), f"slot is {2**31}; allowed: 0..2")
          for name in ("begin", "answered", "release", "cancel", "generation", "version")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
    for call in (lambda: shared.slot_states(-1), lambda: worker.begin(2**32), lambda: shared.slot_states("0")):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            call()


def test_answers_of_another_width_or_for_no_batch_are_refused() -> None:
    server, batch = gathered(segment(), 3)
    policies, values = np.zeros((4, 52), np.float32), np.zeros((4, 1), np.float32)
    for args, said in (
        ((batch, policies[:2], values), r"policies has the shape \(2, 52\); the batch takes \[3 or more, 52\]"),
        ((batch, policies, values[:1]), r"values has the shape \(1, 1\); the batch takes \[3 or more, 1\]"),
        ((batch, policies[:, :51].copy(), values), "policies has the shape"),
        ((batch, policies.ravel(), values), "policies has the shape"),
        ((batch + 7, policies, values), f"batch {batch + 7} is none that was gathered"),
    ):
        with pytest.raises(ValueError, match=said):
            server.scatter(*args, version=1)
    for array in (policies.astype(np.float64), policies[::2], np.asfortranarray(policies), policies.tolist()):
        with pytest.raises(TypeError):
            server.scatter(batch, array, values, 1)  # type: ignore[arg-type]
    for call in (lambda: server.fail(99, "no", 1), lambda: server.split(99)):
        with pytest.raises(ValueError, match="batch 99 is none"):
            call()
    server.scatter(batch, policies, values, 1)
    with pytest.raises(ValueError, match=f"batch {batch} is none"):
        server.scatter(batch, policies, values, 1)


def test_staging_of_another_kind_is_refused() -> None:
    server, batch = gathered(segment(), 3)
    good = new_staging(4)
    read_only = np.frombuffer(bytes(good.features.nbytes), np.float16).reshape(4, 256)
    for states in (good.features.astype(np.float32), np.zeros((4, 512), np.float16)[:, ::2], read_only):
        with pytest.raises(ValueError, match="wanted: a writable array in C order of float16"):
            server.gather(states, good.masks, 4)
        with pytest.raises(ValueError, match="wanted: a writable array"):
            server.refill(batch, states, good.masks, 4)
    with pytest.raises(ValueError, match="limit_rows is 5; the staging holds 4 rows"):
        server.gather(good.features, good.masks, 5)
    with pytest.raises(ValueError, match="rows of the batch is 3; allowed: 1..2"):
        server.refill(batch, good.features, good.masks, 2)


def test_worker_of_another_segment_or_with_impossible_settings_is_refused() -> None:
    settings = play_settings(CONFIG)
    for shared, args, said in (
        (segment(), (2, 0, 1, 1, settings), "worker is 2; allowed: 0..1"),
        (segment(), (0, 0, 1, 0, settings), "lanes is 0; allowed: 1..1000000"),
        (segment(state_dim=40), (0, 0, 1, 1, settings), "the segment is made for others"),
        (segment(wire="float32"), (0, 0, 1, 1, settings), "the segment is made for others"),
        (segment(), (0, 0, 1, 1, broken(players=[])), "players has no value with a weight"),
        (segment(), (0, 0, 1, 1000, settings), "slots of 4 rows"),
    ):
        with pytest.raises(ValueError, match=said):
            _core.run_worker(shared, *args)  # type: ignore[arg-type]


def broken(**changes: Any) -> _core.PlaySettings:
    settings = play_settings(CONFIG)
    for name, value in changes.items():
        if hasattr(settings, name):
            setattr(settings, name, value)
        else:
            search = settings.search
            setattr(search, name, value)
            settings.search = search
    return settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"players": [(2, 1.0)]}, "players is 2; allowed: 3..8"),
        ({"players": [(4, -1.0)]}, "players 4 has the weight -1"),
        ({"players": [(4, float("nan"))]}, "players 4 has the weight -?nan"),
        ({"players": [(4, 0.0)]}, "players has no value with a weight"),
        ({"cards": [(18, 1.0)]}, "cards is 18; allowed: 1..17"),
        ({"cards": [(17, 1.0)]}, "players is 4; allowed with them: hands of at most 13 cards"),
        ({"trumps": [(5, 1.0)]}, "trump is 5; allowed: 0..4"),
        ({"dealer": 8}, "dealer is 8; allowed: -1..7"),
        ({"others": [(None, 2.0)]}, "others has the share 2"),
        ({"games": True, "rules": _core.Rules(sequence=[17])}, "cards in a game's sequence is 17; allowed: 1..13"),
        ({"games": True, "rules": _core.Rules(sequence=[1] * 300)}, "rounds of a game is 300; allowed: 1..256"),
        ({"determinizations": 0}, "determinizations is 0"),
        ({"considered": 0}, "considered is 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"root": _core.RootRule(7)}, "root is 7; allowed: 0..1"),
    ],
)
def test_settings_that_nothing_can_be_played_with_are_refused(changes: dict[str, Any], said: str) -> None:
    settings = broken(**changes)
    table = [[0] * 8]
    bot = _core.BotConfig(_core.BotKind.random)
    for call in (
        lambda: _core.PlayRun(settings, [0], 1),
        lambda: _core.MatchRun(settings, [bot], table, 1, 1),
        lambda: _core.bench_search(settings, 1, 1),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_runs_that_are_stepped_out_of_turn_say_so() -> None:
    r = _core.Round.deal(seed=1)
    search = _core.SearchRun(r, CONFIG.to_core(), 0)
    play = _core.PlayRun(play_settings(CONFIG), [0], 1)
    match = _core.MatchRun(play_settings(CONFIG), [CONFIG.to_core()], [[0] * 8], 1, 1)
    for run in (search, play, match):
        run.step()
        with pytest.raises(ValueError, match="stepped before its rows were answered"):
            run.step()
    with pytest.raises(ValueError, match="no result yet"):
        search.result()
    with pytest.raises(ValueError, match="agent 3 asked nothing"):
        match.answer(3, np.zeros((1, 52), np.float32), np.zeros((1, 1), np.float32))


def test_self_play_does_not_go_on_from_an_answer_that_was_refused() -> None:
    run = _core.PlayRun(play_settings(CONFIG), [0, 1], 2)
    states, _ = run.step()  # type: ignore[misc]
    run.answer(np.full((len(states), 52), np.nan, np.float32), np.zeros((len(states), 1), np.float32))
    with pytest.raises(RuntimeError, match="row 0"):
        run.step()
    with pytest.raises(ValueError, match="stepped before its rows were answered"):
        run.step()


def test_segment_in_a_file_that_is_too_small_is_refused() -> None:
    fd = os.memfd_create("test")
    try:
        for size in (0, mmap.PAGESIZE):
            os.ftruncate(fd, size)
            with pytest.raises(ValueError, match="is no file of the"):
                _core.Segment.create(fd, **SIZES)
    finally:
        os.close(fd)
    with pytest.raises(ValueError, match="fd -1 is no file"):
        _core.Segment.create(-1, **SIZES)


def test_measurements_of_nothing_are_refused() -> None:
    for call, said in (
        (lambda: _core.bench_round_trip(0), "trips is 0"),
        (lambda: _core.bench_rows(0, 1, 1), "rows_per_slot is 0"),
        (lambda: _core.bench_rows(1, 99, 1), "slots_per_worker is 99"),
        (lambda: _core.BotConfig(_core.BotKind(9)), "kind is 9"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


FUZZ = """
from tests.core.test_bindings import fuzz
fuzz({seed})
"""


def fuzz(seed: int) -> None:
    """Calls every binding with arguments drawn from a pool of all kinds; errors are fine, a crash is not."""
    rng = random.Random(seed)
    shared, small = segment(), segment(state_dim=40, action_dim=7, value_dim=3, wire="float32")
    server, batch = gathered(segment(), 3)
    staging = new_staging(4)
    settings, r = play_settings(CONFIG), _core.Round.deal(seed=1)
    objects: list[Any] = [
        shared, small, server, _core.WorkerPort(shared, 0), settings, r, _core.Rules(), _core.Game(), CONFIG.to_core(),
        _core.SearchRun(r, CONFIG.to_core(), 0), _core.PlayRun(settings, [0, 1], 2),
        _core.MatchRun(settings, [CONFIG.to_core(), _core.BotConfig(_core.BotKind.random)], [[0, 1] * 4], 2, 1),
    ]  # fmt: skip
    pool: list[Any] = [
        *objects, None, True, -1, 0, 1, 2, 3, 4, 5, 52, 255, 2**16, 2**31, 2**32, 2**64, 2**70, 0.0, -1.0, 1e300, float("nan"),
        float("inf"), "", "float16", b"", b"\\x01" * 60, [], [0], [1, 2, 3], [[0, 1], [2, 3], [4, 5]], {}, (), object(), batch,
        staging.features, staging.masks, staging.policies, staging.values, np.zeros((3, 0), np.float32), np.zeros((2, 40), np.float32),
        np.ones((2, 7), bool), np.zeros((4, 416), np.uint8), np.ones(4, np.uint8), np.zeros((4, 52))[::2], np.array(3), staging.features.view(np.uint16),
    ]  # fmt: skip
    never = {
        "die_with_parent",
        "bench_rows",
        "bench_round_trip",
        "bench_search",
        "run_worker",
        "solve",
        "reap_client",
        "bot_action",
        "redeal",
    }
    calls = [getattr(_core, name) for name in dir(_core) if callable(getattr(_core, name)) and name not in never]
    for one in objects:
        calls += [getattr(one, name) for name in dir(type(one)) if callable(getattr(type(one), name, None))
                  and (not name.startswith("_") or name in ("__getstate__", "__copy__", "__repr__", "__eq__", "__deepcopy__"))
                  and name not in never]  # fmt: skip
    for _ in range(20_000):
        arguments = [rng.choice(pool) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4]))]
        try:
            rng.choice(calls)(*arguments)
        except Exception:  # whatever it says: it came back
            pass


@pytest.mark.parametrize("seed", range(2))
def test_bindings_come_back_from_arguments_of_any_kind(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ.format(seed=seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]
