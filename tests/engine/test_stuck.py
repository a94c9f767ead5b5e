"""Who is stuck and who is only slow, and what becomes of those who are."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shmzero import _core, play_rounds
from shmzero.engine import stalls
from shmzero.engine.config import SelfPlayConfig, to_flags
from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import resolve
from shmzero.errors import WorkerDied
from shmzero.game.bots import built_in_bot
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.mcts.play import play_settings
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.processes import deaths, watch
from shmzero.runs.checkpoints import checkpoint_path
from shmzero.selfplay import parse
from shmzero.training import match_runner
from shmzero.training.config import TrainConfig
from shmzero.training.match_runner import MatchRunner
from tests.support.faults import WORKER_LOOP, poisoned_loop, with_fault
from tests.support.processes import wait_for

LIGHT = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)


def test_fleet_bots_whose_decisions_take_longer_than_stall_s_are_not_stuck() -> None:
    """With this seed the agent is asked in between, and so the worker is known to move."""
    config = SelfPlayConfig.of(
        evaluator="hash",
        preset="light",
        players="3",
        cards="1",
        opponent_pool="mc8000000:1",
        workers=1,
        lanes=1,
        stall_s=1,
        seed=2,
    )
    found = []
    with Fleet(resolve(config), range(2), 2) as fleet:
        while not fleet.done:
            found += fleet.poll(0.02)
        assert fleet.restarts == 0 and not [line for line in fleet.events if "did nothing" in line]
    assert sorted(unit for unit, _ in found) == [0, 1]


def test_match_of_slow_bots_lets_its_caller_look_around() -> None:
    """What is asked and how it ends is the same as of one that does not."""
    settings = play_settings(SearchConfig(), 3, "3", "2")
    bot = built_in_bot("mc100000")
    assert bot is not None
    slow = built_in_bot("mc500000")
    assert slow is not None
    run = _core.MatchRun(settings, [slow], [[0] * 8], lanes=3, threads=1)
    looks = 0
    while (blocks := run.step()) is not None:
        assert blocks == []
        looks += 1
    assert looks > 3 and run.num_rounds == 3
    searched = play_settings(SearchConfig(), 3, "3", "2").search
    agents = [searched, bot]
    asked: list[list[int]] = []
    for threads in (1, 2):
        run, evaluator = (
            _core.MatchRun(settings, agents, [[0, 1, 1, 0, 0, 0, 0, 0]] * 2, lanes=6, threads=threads),
            HashEvaluator(),
        )
        asked.append([])
        while (blocks := run.step()) is not None:
            for agent, features, masks in blocks:
                asked[-1].append(len(masks))
                wide = (masks[:, None] >> np.arange(52, dtype=np.uint64) & np.uint64(1)).astype(bool)
                run.answer(agent, *evaluator.evaluate_many(features.astype(np.float32), wide))
    assert asked[0] == asked[1]


# --- slots in states that nobody put them in ----------------------------------------------------------------------------------------


class Words:
    """The words of a fleet's slots, for a stray write."""

    def __init__(self, fleet: Fleet) -> None:
        self._segment = fleet.segment

    def generation(self, worker: int, slot: int) -> int:
        return _core.WorkerPort(self._segment, worker).generation(slot)

    def write(self, worker: int, slot: int, generation: int, state: int) -> None:
        _core.overwrite_slot(self._segment, worker, slot, word=generation << 32 | state)

    def write_rows(self, worker: int, slot: int, rows: int) -> None:
        _core.overwrite_slot(self._segment, worker, slot, rows=rows)


FREE, FILLING, TAKEN, ORPHANED = 0, 1, 3, 5
MENDED = re.compile(r"inference process 0 mended \d slots whose words neither it nor a worker wrote")
SLOTS = SelfPlayConfig.of(evaluator="hash", preset="light", workers=1, slots=2, lanes=20, rounds=150, stall_s=2)


def finish(
    fleet: Fleet, found: dict[int, list[bytes]], said: list[str], until: Callable[[], object] = lambda: False
) -> None:
    """Poll until the fleet is done, or earlier."""
    while not fleet.done and not until():
        found.update(fleet.poll(0.02))
        said += fleet.events
        fleet.events.clear()


def stop_with_a_request(fleet: Fleet, found: dict[int, list[bytes]], said: list[str]) -> tuple[Words, int]:
    """Stop the inference process, which may have taken the request that waits in slot 0; returns its process id too."""
    finish(fleet, found, said, until=lambda: found)
    (server,) = fleet.pids()["servers"]
    os.kill(server, signal.SIGSTOP)
    finish(fleet, found, said, until=lambda: fleet.segment.slot_states(0)[0] in ("ready", "taken"))
    return Words(fleet), server


@pytest.mark.parametrize(("state", "later"), [(FREE, 0), (FILLING, 0), (ORPHANED, 0), (0x77, 0), (TAKEN, 1)])
def test_fleet_stray_write_to_a_slot_that_waits_is_said_and_costs_a_process_not_the_run(state: int, later: int) -> None:
    """Written while the inference process is stopped, which may have taken the request: it says so then."""
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    with Fleet(resolve(SLOTS), range(150), 150) as fleet:
        words, server = stop_with_a_request(fleet, found, said)
        generation = words.generation(0, 0)
        words.write(0, 0, generation + later, state)
        os.kill(server, signal.SIGCONT)
        finish(fleet, found, said)
        assert fleet.restarts >= 1
    assert any("wrote over shared memory: slot 0 " in line for line in said), said
    assert [found[unit] for unit in range(150)] == [[record] for record in play_rounds(HashEvaluator(), 150, LIGHT)]


def test_fleet_request_that_is_passed_over_while_others_are_answered_is_said_and_answered() -> None:
    """A stray write has it look as if it were being computed already."""
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    with Fleet(resolve(SLOTS), range(10**6), 10**6) as fleet:
        words, server = stop_with_a_request(fleet, found, said)
        words.write(0, 0, words.generation(0, 0), TAKEN)
        os.kill(server, signal.SIGCONT)
        generation = words.generation(0, 0)
        finish(fleet, found, said, until=lambda: words.generation(0, 0) > generation and any(map(MENDED.search, said)))


@pytest.mark.parametrize("rows", [0, 1, 10**9])
def test_fleet_stray_write_to_a_number_of_rows_is_said_and_costs_processes_not_the_run(rows: int) -> None:
    """The inference process may meet it first, and its replacement once more, before the worker has looked."""
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    with Fleet(resolve(SLOTS), range(150), 150) as fleet:
        words, server = stop_with_a_request(fleet, found, said)
        words.write_rows(0, 0, rows)
        os.kill(server, signal.SIGCONT)
        finish(fleet, found, said)
        assert fleet.restarts >= 1
    assert any(f"with {rows} rows, which neither this worker" in line for line in said), said
    assert [found[unit] for unit in range(150)] == [[record] for record in play_rounds(HashEvaluator(), 150, LIGHT)]


@pytest.mark.parametrize("state", [FILLING, 2, TAKEN, ORPHANED])
def test_fleet_stray_write_to_slots_that_are_free_is_said_and_is_mended_or_costs_a_process(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "LOOK_S", 0.0)  # the rounds may be over before a later look
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    with Fleet(resolve(SLOTS), range(150), 150) as fleet:
        words = Words(fleet)
        finish(fleet, found, said, until=lambda: found)
        fleet.paused = True
        finish(
            fleet,
            found,
            said,
            until=lambda: set(fleet.segment.slot_states(0)) == {"free"} and not fleet._workers.workers[0].outstanding,
        )
        for slot in range(2):
            words.write(0, slot, words.generation(0, slot), state)
        fleet.paused = False
        finish(fleet, found, said, until=lambda: fleet.restarts or any(map(MENDED.search, said)))
        finish(fleet, found, said)
    assert any(
        MENDED.search(line) or "its owner left it" in line or "finished no batch for 2 s" in line for line in said
    ), said
    assert [found[unit] for unit in range(150)] == [[record] for record in play_rounds(HashEvaluator(), 150, LIGHT)]


def test_slot_states_of_a_word_that_is_none_says_so() -> None:
    with Fleet(resolve(SLOTS), range(1), 1) as fleet:
        os.kill(fleet.pids()["workers"][0], signal.SIGSTOP)
        Words(fleet).write(0, 1, 7, 0x77)
        assert fleet.segment.slot_states(0)[1] == "state 119"


# --- units that end their workers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever worker plays round 2 ends by a crash, or, where there is a file `hang`, stops."""
    for name, value in with_fault(WORKER_LOOP, poisoned_loop, tmp_path / "hang").items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_fleet_round_that_ended_two_workers_is_given_up_with_what_plays_it_alone(
    poisoned: None, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "START_S", 10.0)
    if how == "hang":
        (tmp_path / "hang").touch()
    config = SelfPlayConfig.of(
        evaluator="hash", preset="light", players="3", cards="3", opponent_pool="mc300000:1", workers=1, lanes=1, rounds=4, stall_s=1,
        seed=5,
    )  # fmt: skip
    finished: list[int] = []
    with (
        pytest.raises(WorkerDied, match="round 2 has ended 2 workers") as caught,
        Fleet(resolve(config), range(4), 4) as fleet,
    ):
        while not fleet.done:
            finished += [unit for unit, _ in fleet.poll(0.02)]
        assert sorted(finished) == [0, 1]
    text = str(caught.value)
    assert ("with work to do" if how == "hang" else f"ended with status -{signal.SIGSEGV:d}") in text
    flags = shlex.split(text.partition("python -m shmzero.selfplay ")[2])
    alone = parse(flags)
    assert (alone.length.first, alone.length.rounds, alone.seed, alone.seats.opponent_pool) == (2, 1, 5, "mc300000:1")
    assert alone.identity() == config.identity()


def test_fleet_workers_that_somebody_else_kills_cost_no_round(poisoned: None, tmp_path: Path) -> None:
    """Nobody knows whose doing that was; the round that they were at is played again."""
    (tmp_path / "hang").touch()
    config = SelfPlayConfig.of(
        evaluator="hash",
        preset="light",
        players="3",
        cards="3",
        opponent_pool="mc300000:1",
        workers=1,
        lanes=1,
        rounds=4,
    )
    with Fleet(resolve(config), range(4), 4) as fleet:
        for _ in range(deaths.MOST_DEATHS - 2):
            wait_for(lambda: fleet.poll(0.02) is None or fleet.segment.playing_unit(0) == 2)
            (worker,) = fleet.pids()["workers"]
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda pid=worker: fleet.poll(0.02) is None or fleet.pids()["workers"] != [pid])
        assert fleet.restarts == deaths.MOST_DEATHS - 2


def test_first_plays_the_rounds_from_a_number_on_as_they_always_are(tmp_path: Path) -> None:
    from shmzero.engine import run as engine_run
    from shmzero.runs.records import Records

    config = SelfPlayConfig.of(evaluator="hash", preset="light", first=7, rounds=3, workers=1)
    summary = engine_run.run(config, tmp_path)
    assert summary["complete"] and list(Records(tmp_path)) == play_rounds(HashEvaluator(), 10, LIGHT)[7:]
    assert engine_run.run(config, tmp_path)["new_rounds"] == 0


def test_flags_of_settings_come_back_as_the_same_settings() -> None:
    config = SelfPlayConfig.of(
        rounds=3, cards="1-3", opponent_pool="threshold:0.2,mc90:0.1", compile=False, random_moves=0.0, follow=False
    )
    assert parse(shlex.split(to_flags(config))) == config and to_flags(SelfPlayConfig()) == ""


# --- learner and matches ---------------------------------------------------------------------------------------------------------------


def test_matches_that_stand_still_are_said_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the run goes on, and at its end, where nothing else would ever end them."""
    monkeypatch.setattr(watch, "START_S", 1.0)
    monkeypatch.setattr(match_runner, "STALL_S", 1.0)
    found = MatchRunner(TrainConfig.of(evaluate_s=1, deals=10**6, match_opponents="random"), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), checkpoint_path(tmp_path, 5))
    said: list[str] = []

    def stop() -> bool:
        if found._child is not None and found._child.is_running():
            os.kill(found._child.pid, signal.SIGSTOP)
        return False

    try:
        found.poll(2.0, said.append)
        stop()
        wait_for(lambda: found.poll(0.0, said.append) or found.failures == 1)
        assert said == [
            "the matches got nowhere for 1 s",
            "the matches ended with status -9: (it said nothing; exit status -9)",
        ]
        found.finish(said.append, stop)
        assert found.failures == 2 and said.count("the matches got nowhere for 1 s") == 2
    finally:
        found.kill()
