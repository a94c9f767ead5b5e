"""The command, end to end: real processes, real shared memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shmzero import SearchConfig, _core, play_rounds
from shmzero.engine import run as engine_run
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.messages import WorkerSpec
from shmzero.engine.plan import resolve
from shmzero.engine.worker_pool import WorkerPool
from shmzero.errors import RecordError
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.runs.records import Records
from tests.support.faults import DEVICE, slow_device, with_fault
from tests.support.processes import alive, children_of, committed, start, wait_for

RUN = ("shmzero.selfplay", "--evaluator", "hash", "--json", "--rounds")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shmzero.selfplay", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(Records(folder))).hexdigest()


def play(folder: Path, *arguments: object) -> str:
    done = command("--evaluator", "hash", "--rounds", 60, "--preset", "light", "--out", folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(Records(folder)) == 60
    return digest(folder)


def test_selfplay_hash_records_do_not_depend_on_workers_or_batches(tmp_path: Path) -> None:
    for leaves in (1, 4):
        found = {
            play(tmp_path / f"{leaves}-{i}", "--leaves-in-flight", leaves, *arguments)
            for i, arguments in enumerate(
                [
                    ("--workers", 1),
                    ("--workers", 1, "--device", "cpu*3"),
                    ("--workers", 7),
                    ("--max-batch", 1),
                    ("--max-batch", 64),
                    ("--max-batch", 4096),
                ]
            )
        }
        assert len(found) == 1


def test_play_rounds_in_process_gives_the_records_of_the_command(tmp_path: Path) -> None:
    config = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)
    records = play_rounds(HashEvaluator(), 60, config)
    assert play(tmp_path / "run") == hashlib.sha256(b"".join(records)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["workers", "servers"])
def test_fleet_killed_child_changes_no_record(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Twenty kills at random moments; every unit comes once and as it comes without them."""
    monkeypatch.setattr("shmzero.processes.deaths.MOST_DEATHS", 1000)
    rng = random.Random(kind)
    config = SelfPlayConfig.of(evaluator="hash", rounds=3000, preset="light", workers=2)
    units: dict[int, list[bytes]] = {}
    before = children_of(os.getpid())
    with Fleet(resolve(config), range(3000), 3000) as fleet:
        killed = 0
        while not fleet.done or fleet.restarts < 20:
            for unit, records in fleet.poll(0.02):
                assert unit not in units
                units[unit] = records
            if killed < 20 and fleet.restarts == killed and len(units) > 100 * killed + rng.randrange(100):
                pids = fleet.pids()[kind]
                os.kill(rng.choice(pids), signal.SIGKILL)
                killed += 1
        assert killed == 20 and fleet.restarts == 20
    assert children_of(os.getpid()) == before
    assert not any(name.startswith(f"shmzero-{os.getpid()}-") for name in os.listdir("/dev/shm"))
    calm: dict[int, list[bytes]] = {}
    with Fleet(resolve(config), range(3000), 3000) as fleet:
        while not fleet.done:
            calm.update(fleet.poll(0.1))
    assert units == calm


@pytest.mark.slow
def test_selfplay_killed_parent_leaves_no_process_and_no_memory_and_goes_on(tmp_path: Path) -> None:
    parents = []
    folder = tmp_path / "run"
    kept = 0
    for attempt in range(20):
        process = start(*RUN, 100_000, "--out", folder)
        parents.append(process.pid)
        wait_for(lambda p=process: len(children_of(p.pid)) >= 2 or p.poll() is not None)
        if attempt % 2:
            wait_for(lambda known=kept: committed(folder) > known, process)
        children = children_of(process.pid)
        process.kill()
        process.communicate()
        wait_for(lambda c=children: not any(map(alive, c)))
        assert committed(folder) >= kept
        kept = committed(folder)
    assert kept > 0 and not [name for pid in parents for name in os.listdir("/dev/shm") if f"-{pid}-" in name]
    done = command("--evaluator", "hash", "--rounds", kept + 50, "--out", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    with sqlite3.connect(folder / "rounds.sqlite") as connection:
        wanted = (kept + 50,)
        assert connection.execute("SELECT count(*) FROM rounds WHERE id < ?", wanted).fetchone() == wanted


@pytest.mark.slow
def test_selfplay_interrupt_commits_and_rerun_goes_on_then_has_nothing_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(*RUN, 200_000, "--out", folder)
    wait_for(lambda: committed(folder) > 0, process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130
    summary = json.loads(out)
    assert summary["rounds"] == len(Records(folder)) and not summary["complete"]
    total = summary["rounds"] + 20
    assert command("--evaluator", "hash", "--rounds", total, "--out", folder).returncode == 0
    assert "nothing to do" in command("--evaluator", "hash", "--rounds", total, "--out", folder).stderr


def test_run_folder_keeps_what_cannot_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = play_rounds(HashEvaluator(), 3, SearchConfig(simulations=0))

    def damaged(self: RecordWriter) -> int:
        raise RecordError("damaged")

    for name, rounds, count, kept in (("a", 0, None, False), ("b", 3, None, True), ("c", 3, damaged, True)):
        with (
            monkeypatch.context() as patch, pytest.raises(RecordError, match="no room"),
            run_folder(tmp_path / name, {}) as writer,
        ):  # fmt: skip
            writer.write([(unit, [record]) for unit, record in enumerate(records[:rounds])])
            if count:
                patch.setattr(RecordWriter, "count", count)
            raise RecordError("no room")
        assert (tmp_path / name / "rounds.sqlite").exists() == kept
        assert not kept or len(Records(tmp_path / name)) == 3


def test_selfplay_checkpoint_replaced_while_the_fleet_starts_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for seed, path in enumerate((first, second)):
        save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=seed), path)

    class Slow(Fleet):
        def __init__(self, *settings: object) -> None:
            super().__init__(*settings)  # type: ignore[arg-type]
            second.replace(first)

    monkeypatch.setattr(engine_run, "METRICS_S", 0.0)
    config = SelfPlayConfig.of(checkpoint=first, follow=True, rounds=10**6, preset="light", compile=False)
    said: list[str] = []
    give_up = time.monotonic() + 60

    def stopped() -> bool:
        return "inference process 0 serves weights 1" in said or time.monotonic() > give_up

    engine_run.run(config, tmp_path / "run", said.append, stopped=stopped, start=Slow)
    assert "inference process 0 serves weights 1" in said


def test_selfplay_games_record_every_round_with_the_running_totals(tmp_path: Path) -> None:
    done = command("--evaluator", "hash", "--games", 3, "--cards", 3, "--preset", "light", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rounds = [_core.decode_record(r) for r in Records(tmp_path / "run")]
    assert len(rounds) == 3 * 8
    for before, after in zip(rounds, rounds[1:], strict=False):
        if after["round_of_game"]:
            totals = [t + s for t, s in zip(before["totals_before"], before["scores"], strict=True)]
            assert after["totals_before"] == totals and after["dealer"] == (before["dealer"] + 1) % 4


def test_selfplay_game_is_gone_on_with_from_its_finished_rounds() -> None:
    """Its records so far are all that is needed; what follows is as if it had never stopped."""
    search = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)
    whole = play_rounds(HashEvaluator(), 2, search, cards="3", games=True)
    config = SelfPlayConfig.of(evaluator="hash", games=2, cards="3", preset="light", workers=1)
    found: dict[int, list[bytes]] = {}
    with Fleet(resolve(config), range(2), 2, in_progress={1: whole[8:13]}) as fleet:
        while not fleet.done:
            found.update(fleet.poll(0.05))
            rounds = fleet.counters()["rounds"]
    assert found == {0: whole[:8], 1: whole[8:]} and rounds <= 8 + 3


def test_fleet_killed_worker_costs_no_finished_round_of_a_game(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmzero.processes.deaths.MOST_DEATHS", 1000)
    search = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)
    config = SelfPlayConfig.of(evaluator="hash", games=4, cards="7", preset="light", workers=2)
    found: dict[int, list[bytes]] = {}
    killed: set[int] = set()
    with Fleet(resolve(config), range(4), 4) as fleet:
        while not fleet.done:
            found.update(fleet.poll(0.005))
            middle = {len(records) for records in fleet.in_progress.values()} - killed
            if middle and len(killed) < 6 and fleet.restarts == len(killed):
                killed.add(max(middle))
                for pid in fleet.pids()["workers"][:1]:
                    os.kill(pid, signal.SIGKILL)
    assert killed
    assert [record for game in range(4) for record in found[game]] == play_rounds(
        HashEvaluator(), 4, search, cards="7", games=True
    )


@pytest.mark.slow
def test_selfplay_interrupted_games_keep_every_finished_round_and_go_on_from_there(tmp_path: Path) -> None:
    """No game is finished when it is interrupted, and still its rounds are there, and are not played again."""
    folder = tmp_path / "run"
    arguments = ("--evaluator", "hash", "--games", 2, "--cards", 13, "--preset", "light", "--out", folder, "--json")
    process = start("shmzero.selfplay", *arguments, environment=with_fault(DEVICE, slow_device, 0.0005))
    wait_for(lambda: committed(folder) > 0, process)
    process.send_signal(signal.SIGINT)
    first = json.loads(process.communicate()[0])
    assert process.returncode == 130 and first["new_rounds"] == len(Records(folder)) > 0
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout)
    assert second["complete"] and first["new_rounds"] + second["new_rounds"] == second["rounds"] == 2 * 28
    search = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)
    assert list(Records(folder)) == play_rounds(HashEvaluator(), 2, search, cards="13", games=True)


BAD = [
    (("--rounds", "-5"), 2, "rounds is -5"),
    (("--rounds", "0"), 2, "rounds is 0"),
    (("--workers", "100000"), 2, "workers is 100000"),
    (("--preset", "huge"), 2, "huge"),
    (("--players", "9"), 2, "players is '9'"),
    (("--players", "8", "--cards", "7"), 2, "cards is '7'"),
    (("--trump", "swords"), 2, "swords"),
    (("--device", "tpu"), 2, "device is 'tpu'"),
    (("--checkpoint", "/nowhere.safetensors"), 2, "nowhere"),
    (("--config", "/nowhere.toml"), 2, "nowhere"),
    (("--simulations", "-1"), 2, "simulations is -1"),
    (("--rounds", "10", "--games", "2"), 2, "both"),
    (("--out", "/proc/nothing/run"), 1, "/proc/nothing/run"),
    (
        (
            "--evaluator",
            "hash",
            "--max-batch",
            "1000000",
            "--lanes",
            "1000000",
            "--rounds",
            "1000000",
            "--players",
            "8",
            "--cards",
            "1",
            "--determinizations",
            "10000",
            "--preset",
            "light",
        ),
        2,
        "lanes is 500000 with 10000 rows each, 1250000000 in a slot; allowed: 4194304 rows in a slot",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "named"), BAD)
def test_selfplay_bad_input_ends_with_one_clear_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, named: str
) -> None:
    out = () if "--out" in arguments else ("--out", tmp_path / "run")
    done = command(*arguments, *out)
    assert done.returncode == code and done.stdout == ""
    assert named in done.stderr and re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr


def test_selfplay_other_settings_on_the_same_folder_are_refused_naming_what_differs(tmp_path: Path) -> None:
    play(tmp_path)
    before = digest(tmp_path)
    done = command("--evaluator", "hash", "--rounds", 70, "--preset", "heavy", "--out", tmp_path)
    assert done.returncode == 2 and re.search("determinizations: 2 there, 5 now", done.stderr)
    assert digest(tmp_path) == before


def test_selfplay_record_file_of_another_schema_is_refused_untouched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "rounds.sqlite") as connection:
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
        connection.execute("INSERT INTO meta VALUES ('schema', '99')")
    connection.close()
    before = (tmp_path / "rounds.sqlite").read_bytes()
    done = command("--evaluator", "hash", "--rounds", 5, "--out", tmp_path)
    assert done.returncode == 2 and "schema version 99" in done.stderr
    assert (tmp_path / "rounds.sqlite").read_bytes() == before


def test_selfplay_child_that_keeps_dying_ends_the_run_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from shmzero.errors import WorkerDied

    config = SelfPlayConfig.of(evaluator="hash", rounds=100)
    real = WorkerPool._spec

    def too_large(self: WorkerPool, *how: int) -> WorkerSpec:
        return dataclasses.replace(real(self, *how), lanes=10**6)

    monkeypatch.setattr(WorkerPool, "_spec", too_large)
    with pytest.raises(WorkerDied, match="lanes need"), Fleet(resolve(config), range(100), 100) as fleet:
        while not fleet.done:
            fleet.poll(0.1)


def test_selfplay_real_network_plays_and_says_that_it_is_fresh(tmp_path: Path) -> None:
    done = command(
        "--rounds", 3, "--preset", "light", "--net", "small", "--no-compile", "--cards", 3, "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    assert "freshly initialised from seed 0" in done.stderr and len(Records(tmp_path / "run")) == 3
