"""Children that hang or keep dying, and Ctrl-C, seen through the command."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmzero import NetConfig, _core, play_rounds
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.plan import resolve
from shmzero.engine.progress import Progress, decisions_in_a_unit
from shmzero.errors import ConfigError, StartError
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.mcts.play import play_settings
from shmzero.processes import watch
from shmzero.processes.child import has_pidfd
from shmzero.processes.deaths import MOST_DEATHS
from shmzero.runs.records import Records
from tests.support.faults import DEVICE, WORKER_LOOP, broken, device_that_fails_once, slow_device, with_fault
from tests.support.processes import alive, committed, start, wait_for

LIGHT = SearchConfig(determinizations=2, simulations=20, noise_fraction=0.25)


@contextmanager
def started(
    *arguments: object, module: str = "shmzero.selfplay", environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A run of the command; killed at the end if it is still there."""
    words = ("--evaluator", "hash", "--preset", "light", "--json", *arguments)
    process = start(module, *words, environment=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    return not alive(pid)


@pytest.mark.slow
def test_fleet_inference_process_that_hangs_is_reported_replaced_and_costs_nothing() -> None:
    """Stopped, so alive and silent: its work is done again by its replacement, each unit once."""
    config = SelfPlayConfig.of(evaluator="hash", rounds=2000, preset="light", workers=2, stall_s=3)
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    stopped = None
    with Fleet(resolve(config), range(2000), 2000) as fleet:
        while not fleet.done:
            for unit, records in fleet.poll(0.02):
                assert unit not in found
                found[unit] = records
            said += fleet.events
            fleet.events.clear()
            if stopped is None and len(found) > 100:
                (stopped,) = fleet.pids()["servers"]
                os.kill(stopped, signal.SIGSTOP)
        assert fleet.restarts == 1 and fleet.pids()["servers"] != [stopped]
    assert "inference process 0 finished no batch for 3 s" in said
    assert "inference process 0 (cpu) ended with status -9 and is replaced: (it said nothing; exit status -9)" in said
    assert gone(stopped)
    assert [found[unit] for unit in range(2000)] == [[r] for r in play_rounds(HashEvaluator(), 2000, LIGHT)]


def test_fleet_that_was_away_itself_takes_nobody_for_hanging() -> None:
    """Parent and children stand still together, as when the machine does: no time that tells anything."""
    config = SelfPlayConfig.of(evaluator="hash", preset="light", workers=2, stall_s=2)
    with Fleet(resolve(config), range(1_000_000), 1_000_000) as fleet:
        wait_for(lambda: fleet.poll(0.02))
        family = [pid for pids in fleet.pids().values() for pid in pids]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)
        fleet.poll(0.0)  # it looks before they go on
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        for _ in range(3):
            wait_for(lambda: fleet.poll(0.02))
        assert fleet.restarts == 0 and {pid for pids in fleet.pids().values() for pid in pids} == set(family)


@pytest.mark.slow
def test_fleet_that_fails_still_returns_what_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both workers' pipes hold rounds when one dies and cannot be replaced; what is not returned is still to be played."""
    config = SelfPlayConfig.of(evaluator="hash", determinizations=1, simulations=2, workers=2)
    found: list[tuple[int, list[bytes]]] = []
    with Fleet(resolve(config), range(4000), 4000) as fleet:
        wait_for(lambda: found.extend(fleet.poll(0.02)) or found)

        def no_room(index: int) -> None:
            raise StartError(f"worker {index} cannot be started")

        monkeypatch.setattr(fleet._workers, "_start", no_room)
        worker = fleet.pids()["workers"][0]
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: gone(worker) or Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        # A slow look may have found all that was granted finished: it is granted more.
        wait_for(lambda: fleet._workers.grant() or select.select([fleet._workers.workers[1].record_fd], [], [], 0)[0])
        with pytest.raises(StartError):
            fleet.poll(0.5)
        left = fleet.close()
        assert left
        found += left
    units = [unit for unit, _ in found]
    assert len(units) == len(set(units)) == 4000 - fleet._units.left
    assert [records for _, records in sorted(found)][:100] == [
        [record]
        for record in play_rounds(HashEvaluator(), 4000, config.search_config())
        if _core.decode_record(record)["id"] in units
    ][:100]


@pytest.mark.slow
@pytest.mark.parametrize("variable", [WORKER_LOOP, DEVICE])
def test_selfplay_children_that_keep_dying_end_the_run_with_their_traceback(tmp_path: Path, variable: str) -> None:
    with started("--rounds", 50, "--out", tmp_path / "run", environment=with_fault(variable, broken)) as process:
        out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert err.count("is replaced: ZeroDivisionError: the kettle is empty") == MOST_DEATHS - 1
    report = err[err.index("error: ") :]
    what = r"worker \d" if variable == WORKER_LOOP else r"inference process \d \(cpu\)"  # whichever died last
    assert re.match(rf"error: {what} ended with status 1, the {MOST_DEATHS}th death of a child within 60 s", report)
    assert "Traceback (most recent call last)" in report and report.endswith("the kettle is empty\n")
    assert not (tmp_path / "run").exists()
    assert not any(name.startswith(f"shmzero-{process.pid}-") for name in os.listdir("/dev/shm"))


def test_fleet_device_that_fails_once_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a batch, so that the failed batch's slot had answers before: none may be taken for it."""
    for name, value in with_fault(DEVICE, device_that_fails_once, tmp_path / "failed").items():
        monkeypatch.setenv(name, value)
    search = dict(determinizations=1, simulations=20)
    config = SelfPlayConfig.of(evaluator="hash", preset="light", workers=1, lanes=4, max_batch=1, **search)
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    with Fleet(resolve(config), range(60), 60) as fleet:
        while not fleet.done:
            found.update(fleet.poll(0.02))
            said += fleet.events
            fleet.events.clear()
        assert fleet.restarts == 1
    assert any("the kettle is empty" in line for line in said)
    expected = play_rounds(HashEvaluator(), 60, SearchConfig(**search, noise_fraction=LIGHT.noise_fraction))
    assert [found[unit] for unit in range(60)] == [[record] for record in expected]


@pytest.mark.slow
def test_selfplay_killed_children_within_the_limit_do_not_end_the_run(tmp_path: Path) -> None:
    """Killed while they start, so that nothing is played before the last of them."""
    with started("--rounds", 3000, "--workers", 1, "--out", tmp_path / "run") as process:
        for attempt in range(MOST_DEATHS - 1):
            wait_for(lambda: len(children(process.pid)) == 2 or process.poll() is not None)
            victim = children(process.pid)[attempt % 2]
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda pid=victim: pid not in children(process.pid))
        out, err = process.communicate()
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["rounds"] == 3000 and summary["restarts"] == MOST_DEATHS - 1
    assert list(Records(tmp_path / "run").read(most=500)) == play_rounds(HashEvaluator(), 500, LIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_selfplay_asked_to_stop_commits_and_a_rerun_completes(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    with started("--rounds", 200_000, "--out", folder) as process:
        wait_for(lambda: committed(folder) > 0, process)
        family = children(process.pid)
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err and "error" not in err
    summary = json.loads(out)
    assert not summary["complete"] and summary["rounds"] == len(Records(folder)) > 0
    assert all(map(gone, family))
    wanted = summary["rounds"] + 100
    with started("--rounds", wanted, "--out", folder) as process:
        out, _ = process.communicate()
    assert process.returncode == 0 and json.loads(out)["complete"]
    records = [record for record in Records(folder) if int.from_bytes(record[8:16], "little") < wanted]
    assert records[:500] == play_rounds(HashEvaluator(), min(wanted, 500), LIGHT) and len(set(records)) == wanted


def test_selfplay_second_ctrl_c_leaves_at_once_even_while_it_waits_for_the_disk(tmp_path: Path) -> None:
    """A lock on the file holds up a commit, in C; the second waits for nothing, and nothing is half written."""
    folder, writing = tmp_path / "run", tmp_path / "writing"
    written = {"SHMZERO_WRITES": str(writing)}
    with started(
        "--rounds", 200_000, "--out", folder, module="tests.support.noted_writes", environment=written
    ) as process:
        wait_for(lambda: committed(folder) > 0, process)
        lock = sqlite3.connect(folder / "rounds.sqlite", isolation_level=None, timeout=60)
        lock.execute("BEGIN IMMEDIATE")
        family = children(process.pid)
        wait_for(lambda: writing.read_text().endswith("begun\n"), process)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # what comes soon after the first is no second
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGINT and out == ""
        wait_for(lambda: all(map(gone, family)))
        lock.execute("ROLLBACK")
        lock.close()
    kept = list(Records(folder))
    assert len(kept) == len(set(kept)) > 0


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three good ones, of different weights, and one that ends too early."""
    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    paths = [folder / f"{name}.safetensors" for name in (0, 1, 2, "bad")]
    for seed, path in enumerate(paths):
        save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=seed), path)
    paths[3].write_bytes(paths[0].read_bytes()[:-50])
    return paths


def versions_of(record: bytes) -> list[int]:
    return [one["version"] for one in _core.decode_record(record)["searched"]]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cpu*2"])
def test_fleet_replacement_serves_the_weights_that_were_taken_last(
    checkpoints: list[Path], tmp_path: Path, device: str
) -> None:
    """Refused weights never get to a replacement, and those that were taken do, whatever became of their file."""
    file = tmp_path / "net.safetensors"
    file.write_bytes(checkpoints[0].read_bytes())
    config = SelfPlayConfig.of(
        checkpoint=file, rounds=10**6, simulations=2, cards="1", workers=1, device=device, compile=False, max_batch=8
    )
    said: list[str] = []
    versions: list[int] = []
    with Fleet(resolve(config), range(10**6), 10**6) as fleet:

        def until(condition: Callable[[], object]) -> None:
            while not condition():
                for _, (record,) in fleet.poll(0.02):
                    of_round = versions_of(record)
                    assert of_round == sorted(of_round)
                    versions.extend(of_round)
                said.extend(fleet.events)
                fleet.events.clear()

        def replaced() -> None:
            deaths = fleet.restarts
            os.kill(fleet.pids()["servers"][0], signal.SIGKILL)
            until(lambda: fleet.restarts > deaths and fleet.ready)
            played = len(versions)
            until(lambda: len(versions) > played)

        until(lambda: versions)
        assert fleet.publish(checkpoints[3]) == 1
        until(lambda: any("bad.safetensors cannot be read" in line for line in said))
        assert fleet.served.version == 0
        replaced()
        assert set(versions) == {0}
        assert fleet.publish(file.parent / "none.safetensors") == 1
        file.write_bytes(checkpoints[2].read_bytes())
        assert fleet.publish(file) == 2
        until(lambda: 2 in versions and fleet.served.version == 2)
        file.write_bytes(b"")
        replaced()
        assert versions[-1] == 2
        os.kill(fleet.pids()["servers"][0], signal.SIGKILL)  # and what is published to a dead one is not lost
        assert fleet.publish(checkpoints[1]) == 3
        until(lambda: 3 in versions)
    assert any("none.safetensors cannot be read: No such file" in line for line in said)
    assert not any("/proc/" in line for line in said) and set(versions) == {0, 2, 3}


def attend(fleet: Fleet, said: list[str], condition: Callable[[], object]) -> None:
    """Poll until it holds; `said` gets the events."""
    while not condition():
        fleet.poll(0.02)
        said.extend(fleet.events)
        fleet.events.clear()


def test_fleet_inference_process_that_is_slow_to_listen_hears_of_the_newest_weights_all_the_same(
    checkpoints: list[Path],
) -> None:
    """More is published than its socket holds."""
    config = SelfPlayConfig.of(
        checkpoint=checkpoints[0],
        rounds=10**6,
        simulations=2,
        cards="1",
        workers=2,
        device="cpu*2",
        compile=False,
        max_batch=8,
    )
    said: list[str] = []
    with Fleet(resolve(config), range(10**6), 10**6) as fleet:
        attend(fleet, said, lambda: fleet.ready)
        slow = fleet.pids()["servers"][0]
        os.kill(slow, signal.SIGSTOP)
        for wanted in range(1, 401):
            assert fleet.publish(checkpoints[wanted % 3]) == wanted
            fleet.poll(0.0)
        os.kill(slow, signal.SIGCONT)
        attend(
            fleet,
            said,
            lambda: {"inference process 0 serves weights 400", "inference process 1 serves weights 400"} <= set(said),
        )
        assert fleet.restarts == 0 and fleet.served.version == 400


@pytest.mark.slow
def test_fleet_other_network_that_is_refused_does_not_get_to_a_replacement(checkpoints: list[Path]) -> None:
    config = SelfPlayConfig.of(
        checkpoint=checkpoints[0], opponent_pool=f"{checkpoints[1]}:0.5", rounds=10**6, simulations=2, cards="1", workers=1,
        device="cpu", compile=False, max_batch=8,
    )  # fmt: skip
    said: list[str] = []
    with Fleet(resolve(config), range(10**6), 10**6) as fleet:
        attend(fleet, said, lambda: fleet.ready)
        fleet.seat_other(checkpoints[3])
        attend(fleet, said, lambda: any("bad.safetensors" in line for line in said))
        os.kill(fleet.pids()["servers"][0], signal.SIGKILL)
        attend(fleet, said, lambda: fleet.restarts)
        attend(fleet, said, lambda: fleet.ready)  # with the refused one it would end the run
        assert fleet.restarts == 1


def test_fleet_checkpoint_that_cannot_be_read_is_refused_by_name(checkpoints: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.safetensors cannot be read: No such file"):
        Fleet(resolve(SelfPlayConfig.of(checkpoint=tmp_path / "none.safetensors")), range(1), 1)


@pytest.mark.slow
def test_selfplay_follow_takes_new_weights_up_and_a_rerun_never_goes_back(
    checkpoints: list[Path], tmp_path: Path
) -> None:
    folder, file = tmp_path / "run", tmp_path / "net.safetensors"
    file.write_bytes(checkpoints[0].read_bytes())

    def program(rounds: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "shmzero.selfplay", "--checkpoint", str(file), "--follow", "--rounds", str(rounds),
             "--simulations", "2", "--cards", "1", "--workers", "1", "--device", "cpu", "--no-compile", "--json",
             "--out", str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    process = program(10**6)
    assert process.stderr is not None
    try:
        wait_for(lambda: committed(folder) > 0, process)
        (tmp_path / "new").write_bytes(checkpoints[1].read_bytes())
        (tmp_path / "new").replace(file)
        while "serves weights 1" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        summary = json.loads(process.communicate()[0])
    finally:
        process.kill()
    assert summary["weights_version"] == 1
    for path, version in ((checkpoints[1], 1), (checkpoints[2], 2), (checkpoints[0], 3)):
        file.write_bytes(path.read_bytes())
        before = set(Records(folder))
        out, err = program(1 + max(_core.decode_record(record)["id"] for record in before) + 2).communicate()
        assert json.loads(out)["weights_version"] == version, err
        new = set(Records(folder)) - before
        assert len(new) >= 2 and {one for record in new for one in versions_of(record)} <= {version}


def test_fleet_inference_process_that_hangs_before_it_serves_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "START_S", 6.0)
    config = SelfPlayConfig.of(evaluator="hash", rounds=20, preset="light", workers=2, stall_s=1)
    said: list[str] = []
    with Fleet(resolve(config), range(20), 20) as fleet:
        os.kill(fleet.pids()["servers"][0], signal.SIGSTOP)
        while not fleet.done:
            fleet.poll(0.05)
            said += fleet.events
            fleet.events.clear()
        assert fleet.restarts >= 1
    assert "inference process 0 did not begin to serve within 6 s" in said


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at its start", "while it plays"])
def test_fleet_worker_that_hangs_is_reported_replaced_and_costs_nothing(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "START_S", 6.0)
    config = SelfPlayConfig.of(evaluator="hash", rounds=2000, preset="light", workers=2, stall_s=3)
    found: dict[int, list[bytes]] = {}
    said: list[str] = []
    with Fleet(resolve(config), range(2000), 2000) as fleet:
        stopped = fleet.pids()["workers"][0]
        if when == "at its start":
            os.kill(stopped, signal.SIGSTOP)
        while not fleet.done:
            for unit, records in fleet.poll(0.02):
                assert unit not in found
                found[unit] = records
            said += fleet.events
            fleet.events.clear()
            if when == "while it plays" and len(found) > 100 and fleet.pids()["workers"][0] == stopped:
                os.kill(stopped, signal.SIGSTOP)
        assert fleet.restarts >= 1 and fleet.pids()["workers"][0] != stopped
    limit = 6 if when == "at its start" else 3
    assert f"worker 0 did nothing for {limit} s with work to do" in said and gone(stopped)
    assert [found[unit] for unit in range(2000)] == [[r] for r in play_rounds(HashEvaluator(), 2000, LIGHT)]


def test_fleet_without_pidfd_notices_deaths_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    has_pidfd.cache_clear()
    found: dict[int, list[bytes]] = {}
    try:
        with Fleet(resolve(SelfPlayConfig.of(evaluator="hash", preset="light", workers=2)), range(500), 500) as fleet:
            while not fleet.done or fleet.restarts < 2:
                found.update(fleet.poll(0.02))
                if len(found) > 50 and fleet.restarts == 0:
                    for kind in ("workers", "servers"):
                        os.kill(fleet.pids()[kind][0], signal.SIGKILL)
    finally:
        has_pidfd.cache_clear()
    assert [found[unit] for unit in range(500)] == [[r] for r in play_rounds(HashEvaluator(), 500, LIGHT)]


def test_fleet_plays_with_small_pipes_where_large_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def fcntl_of_a_user(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(fd, command, value)

    monkeypatch.setattr(fcntl, "fcntl", fcntl_of_a_user)
    found: dict[int, list[bytes]] = {}
    with Fleet(resolve(SelfPlayConfig.of(evaluator="hash", preset="light", workers=2)), range(500), 500) as fleet:
        while not fleet.done:
            found.update(fleet.poll(0.02))
    assert [found[unit] for unit in range(500)] == [[r] for r in play_rounds(HashEvaluator(), 500, LIGHT)]


def test_selfplay_with_too_few_files_ends_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 24; exec "$@"', "bash", sys.executable, "-m", "shmzero.selfplay", "--evaluator", "hash",
         "--workers", "6", "--rounds", "10", "--out", str(tmp_path / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"error: .* cannot be started: Too many open files; [^\n]*ulimit -n[^\n]*\n", done.stderr)
    assert not (tmp_path / "run").exists()


def test_selfplay_interrupted_before_anything_is_finished_says_what_it_did(tmp_path: Path) -> None:
    """Its settings are in the folder from the start, and its rates are not those of finished rounds alone."""
    folder = tmp_path / "run"

    def lines() -> list[dict[str, float]]:
        written = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
        return [json.loads(line) for line in written.splitlines(keepends=True) if line.endswith("\n")]

    arguments = ("--rounds", 2, "--cards", 13, "--simulations", 1000, "--out", folder)
    with started(*arguments, environment=with_fault(DEVICE, slow_device, 0.002)) as process:
        wait_for(lambda: any(line["begun"] > 0 for line in lines()), process)
        assert (folder / "config.toml").exists()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    summary = json.loads(out)
    assert process.returncode == 130 and summary["new_rounds"] == 0 and summary["distinct_evaluations_per_s"] > 0
    assert lines()[-1]["units"] == 0 < lines()[-1]["begun"] < 2


def test_progress_estimates_the_time_left_before_the_first_round_is_finished() -> None:
    def eta(units: int, begun: float) -> float | None:
        return Progress(
            units=units,
            total_units=10,
            decided_units=begun,
            rounds=0,
            elapsed_s=6.0,
            rounds_per_min=0,
            evaluations_per_s=0,
            mean_batch_rows=0,
            inference_busy=0,
            workers_busy=0,
        ).eta_s

    assert eta(0, 0.0) is None and eta(0, 2.0) == 24 and eta(4, 5.0) == 9 and eta(0, 12.0) == 0
    search = SearchConfig()
    assert decisions_in_a_unit(play_settings(search, players="3", cards="2")) == 6
    assert decisions_in_a_unit(play_settings(search, players="3", cards="2", games=True)) == 3 * (2 + 1 + 1 + 1 + 2)
    assert decisions_in_a_unit(play_settings(search, players="3:1,5:3", cards="1-2")) == 0.25 * 4.5 + 0.75 * 7.5


def test_selfplay_ctrl_c_while_it_is_being_loaded_ends_with_one_line(tmp_path: Path) -> None:
    for name, wait_s in (("_core", 0), ("_multiarray_umath", 0), ("math", 0), ("_sqlite3", 0), ("_sqlite3", 0.1)):
        with started("--rounds", 100_000, "--out", tmp_path / "run") as process:
            maps = Path(f"/proc/{process.pid}/maps")
            wait_for(
                lambda file=maps, name=name: f"/{name}." in file.read_text() and "/_core." in file.read_text(), process
            )
            time.sleep(wait_s)  # until the flags are read, by a library that is loaded for it
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        # Where it comes within an exec() of a library, Python leaves by the signal itself, which a shell calls 130 too.
        assert process.returncode in (130, -signal.SIGINT), err
        assert "Traceback" not in err and (err == "interrupted\n" or json.loads(out)["complete"] is False), err


def test_selfplay_second_run_on_a_folder_in_use_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started("--rounds", 200_000, "--out", folder) as first:
        wait_for(lambda: committed(folder) > 0, first)
        with started("--rounds", 200_000, "--out", folder) as second:
            out, err = second.communicate()
        assert second.returncode == 2 and out == ""
        assert re.fullmatch(r"error: run folder \S+ is being written by another process; [^\n]+\n", err)
        known = committed(folder)
        wait_for(lambda: committed(folder) > known, first)
        first.send_signal(signal.SIGINT)
        first.communicate()
    assert first.returncode == 130
