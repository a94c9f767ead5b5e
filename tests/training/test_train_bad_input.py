"""Training where something is wrong: a full disk, matches that fail, other versions, missing packages, nothing to do."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import safetensors.torch

from shmzero import SearchConfig, _core, play_rounds, plot, train
from shmzero.arena import main as arena_main
from shmzero.cli import terminal
from shmzero.errors import ConfigError, RecordError, WorkerDied
from shmzero.files import append_line, write_whole
from shmzero.learner.algorithm import Learner
from shmzero.learner.config import LearnerConfig
from shmzero.learner.messages import Ready
from shmzero.learner.state import save_state
from shmzero.matches.messages import MatchesSpec
from shmzero.matches.words import GATE
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.runs import metrics
from shmzero.runs.checkpoints import checkpoint_path, newest_checkpoint, newest_version
from shmzero.runs.folder import RunFolder
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.runs.records import Records
from shmzero.training import progress as training_progress
from shmzero.training import run as training_run
from shmzero.training.config import TrainConfig
from shmzero.training.learner_handle import LearnerHandle
from shmzero.training.match_runner import MatchRunner
from shmzero.training.plan import resolve_training
from tests.cli.test_bad_input import mounted
from tests.support.processes import alive, children_of, wait_for
from tests.support.users import forbid_memfd

QUICK = ["--minutes", "30", "--match-opponents", "", "--lanes", "256", "--batch", "256", "--publish-s", "0.2", "--checkpoint-s", "0.5",
         "--buffer", "20000", "--json"]  # fmt: skip


def of_other_features(path: Path) -> None:
    """Make a file of weights say that it reads another version of the features."""
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(data), metadata | {"features": "99"}))


def one_line(captured: str) -> str:
    assert captured.startswith("error: ") and captured.count("\n") == 1, captured
    return captured


@pytest.mark.slow
def test_disk_filling_up_keeps_what_was_committed_and_goes_on_with_space(tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    script = """
    disk=$1 kept=$2; shift 2
    mount -t tmpfs -o size=10m tmpfs "$disk"
    for name in first again; do
      code=0; "$@" >"$kept/$name.out" 2>"$kept/$name.err" || code=$?; echo $code >"$kept/$name.code"
    done
    mkdir "$kept/full"; cp -r "$disk"/rounds.sqlite* "$disk/checkpoints" "$kept/full"
    mount -o remount,size=400m "$disk"
    "$@"
    cp -r "$disk"/rounds.sqlite* "$disk/config.toml" "$disk/checkpoints" "$kept"
    """
    command = [sys.executable, "-m", "shmzero.train", str(disk), "--rounds", "15000", *QUICK]
    done = mounted(script, disk, kept, *command)
    assert done.returncode == 0, done.stderr
    for name in ("first", "again"):
        said = (kept / f"{name}.err").read_text()
        assert (kept / f"{name}.code").read_text() == "1\n", said
        assert re.match("error: .*(full|No space left)", said.splitlines()[-1]) and "Traceback" not in said
        assert said.count("error:") == 1 and (kept / f"{name}.out").read_text() == ""
    full = list(Records(kept / "full"))
    if (newest := newest_checkpoint(kept / "full")) is not None:
        load_checkpoint(newest)
    summary = json.loads(done.stdout)
    assert summary["complete"] and summary["rounds"] == 15000 and summary["steps"] > 0
    records = list(Records(kept))
    assert 0 < len(full) < len(records) == len(set(records)) and set(full) <= set(records)
    assert 'net = "quick"' in (kept / "config.toml").read_text()


@pytest.mark.slow
def test_stages_of_a_run_need_shared_memory_for_one_fleet_at_a_time(tmp_path: Path) -> None:
    """36 MB each, which come out of /dev/shm where the kernel has no files in memory."""
    script = 'mount -t tmpfs -o size=60m tmpfs /dev/shm; "$@"; ls -A /dev/shm'
    searches: set[int] = set()
    for minutes in (0.3, 1, 3):  # until there was time for both
        done = mounted(
            script, sys.executable, "-m", "shmzero.train", tmp_path / "run", "--minutes", minutes, "--targets", "visits",
            "--match-opponents", "", "--search", "1x4,1x8", "--device", "cpu", "--max-batch", 24576, "--json",
            before=forbid_memfd,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["complete"] and done.stdout.count("\n") == 1
        played = (_core.decode_record(data)["searched"] for data in Records(tmp_path / "run"))
        searches = {sum(one["counts"].values()) for decisions in played for one in decisions}
        if len(searches) == 2:
            break
    assert searches == {4, 8}


def test_lines_are_added_after_one_that_was_cut_off_and_files_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    path.write_text(path.read_text() + '{"b": ')
    append_line(path, {"c": 3})
    append_line(path, {"d": 4})
    assert metrics.read_metrics(path) == [{"a": 1}, {"c": 3}, {"d": 4}]
    write_whole(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RecordError, match="Is a directory|cannot be written"):
        append_line(tmp_path, {})


def ended(matches: MatchRunner) -> list[str]:
    """What is said of the matches that are going on, once their process has ended."""
    said: list[str] = []
    until = time.monotonic() + 120
    while matches._child is not None and time.monotonic() < until:
        matches.poll(0.0, said.append)
        time.sleep(0.02)
    assert matches._child is None
    return said


def matches_of(folder: Path, **settings: object) -> MatchRunner:
    (folder / "checkpoints").mkdir(parents=True)
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), folder / "checkpoints" / "00000001.safetensors")
    return MatchRunner(TrainConfig.of(**{"deals": 2, "evaluate_s": 1} | settings), folder)  # type: ignore[arg-type]


def test_matches_whose_process_dies_are_said_and_counted(tmp_path: Path) -> None:
    matches = matches_of(tmp_path, deals=10**6)
    matches.poll(2.0, print)
    assert matches._child is not None
    matches._child.process.kill()
    (line,) = ended(matches)
    assert "the matches ended with status -9" in line and matches.failures == 1


def test_opponent_whose_file_has_gone_is_said_counted_and_met_again_when_it_is_back(tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    matches = matches_of(tmp_path, match_opponents=str(gone))
    matches.poll(2.0, print)
    (line,) = ended(matches)
    assert "gone.safetensors" in line and matches.failures == 1
    gone.write_bytes(checkpoint_path(tmp_path, 1).read_bytes())
    matches.poll(4.0, print)  # the same checkpoint: its match was lost
    assert ended(matches) == [] and list(matches.last) == [str(gone)]


@pytest.mark.slow
def test_gate_and_matches_take_turns_where_either_is_always_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matches = matches_of(tmp_path, gate=True)
    begun: list[str] = []

    def begin(*how: object, modes: tuple[str, ...] = ("one",), **more: object) -> None:
        begun.append(modes[0])
        matches._child = object()  # type: ignore[assignment]  # one at a time

    monkeypatch.setattr(matches, "_start", begin)
    for steps in range(2, 10):
        checkpoint_path(tmp_path, steps).write_bytes(checkpoint_path(tmp_path, 1).read_bytes())
        matches.poll(2.0 * steps, print)
        matches._child = None
    assert begun == ["one", "one"] + [GATE, "one"] * 3, "the first checkpoint needs no gate"


@pytest.mark.slow
def test_train_ctrl_c_in_the_last_matches_is_an_interruption(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "shmzero.train",
        str(tmp_path),
        "--rounds",
        "300",
        "--lanes",
        "64",
        "--match-opponents",
        "mc900",
        "--evaluate-s",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("plays its matches" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 130 and "broken off" in err and "the same command goes on" in out


@pytest.mark.slow
def test_learner_that_never_saves_its_last_state_ends_the_run_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmzero.training.learning.STOP_S", 1.0)
    config = TrainConfig.of(rounds=10**9, minutes=30, lanes=64, batch=64, match_opponents="")
    stopped: list[int] = []

    def stop_once_it_learns() -> bool:
        for child in children_of(os.getpid()):
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            if not stopped and b"shmzero.learner.process" in words and newest_version(tmp_path) > 0:
                os.kill(child, signal.SIGSTOP)
                stopped.append(child)
        return bool(stopped)

    with pytest.raises(WorkerDied, match="did nothing for 1 s at its end"):
        training_run.train(config, tmp_path, stopped=stop_once_it_learns)
    assert not alive(stopped[0])


@pytest.mark.slow
def test_learner_that_stands_still_is_ended_and_another_goes_on(tmp_path: Path) -> None:
    records = [
        (unit, [record]) for unit, record in enumerate(play_rounds(HashEvaluator(), 100, SearchConfig(simulations=0)))
    ]
    link = LearnerHandle(LearnerConfig(net="quick", learner="cpu"), tmp_path)
    link.start(0.0, 0, refill=False)
    try:
        wait_for(lambda: not link.poll() or bool(link.events))
        assert isinstance(link.events.popleft(), Ready) and link.kill_stalled(0.5, False) is None
        os.kill(link.pid, signal.SIGSTOP)
        while not link.behind_bytes:
            link.feed(records)
            assert link.poll()
        wait_for(lambda: link.kill_stalled(0.5, False) == "the learner did nothing for 0.5 s with work to do")
        wait_for(lambda: not link.poll())
        assert "ended with status -9" in link.reap() and link.restarts == 1
        link.start(0.0, 0, refill=False)
        wait_for(lambda: not link.poll() or bool(link.events))
        link.feed(records)
        wait_for(lambda: link.poll() and not link.behind_bytes)
        assert link.kill_stalled(0.0, False) is None
    finally:
        link.kill()


@pytest.mark.slow
def test_learner_that_stands_still_while_self_play_waits_for_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is sent to it then: only its silence tells."""
    real = LearnerHandle.kill_stalled

    def soon(link: LearnerHandle, stall_s: float, behind: bool) -> str | None:
        return real(link, 2.0 if stopped else stall_s, behind)

    monkeypatch.setattr(LearnerHandle, "kill_stalled", soon)
    config = TrainConfig.of(
        rounds=10**9, minutes=30, lanes=256, batch=4096, buffer=20_000, replay_ratio=100, match_opponents=""
    )
    said: list[str] = []
    stopped: list[int] = []

    def over() -> bool:
        for child in children_of(os.getpid()):
            if not stopped and waits and b"shmzero.learner.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGSTOP)
                stopped.append(child)
        return any("is replaced" in line for line in said)

    waits: list[training_progress.TrainProgress] = []

    def show(progress: training_progress.TrainProgress) -> None:
        if progress.play_waits > 0.3 and progress.waits_for == "the learner" and "loss" in progress.learner:
            waits.append(progress)

    summary = training_run.train(config, tmp_path, said.append, show, over)
    assert summary["learner_restarts"] == 1 and "the learner did nothing for 2 s with work to do" in said
    assert not alive(stopped[0])
    assert (
        waits[-1].play.rounds_per_min > 0
        and waits[-1].play.evaluations_per_s > 0
        and waits[-1].play.mean_batch_rows > 0
    )
    assert re.search(r"has waited \d+:\d\d for the learner, [\d,]+/min when it plays", waits[-1].line())
    assert summary["self_play_waits"] > 0.2 and summary["learner_waits"] < 0.8


@pytest.mark.slow
def test_damaged_record_ends_training_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shmzero.train", str(tmp_path / "run"), *QUICK]
    assert subprocess.run([*command, "--rounds", "300"], capture_output=True).returncode == 0
    with sqlite3.connect(tmp_path / "run" / "rounds.sqlite") as connection:
        connection.execute("UPDATE rounds SET record = substr(record, 1, 30) WHERE id = (SELECT max(id) FROM rounds)")
    connection.close()
    done = subprocess.run([*command, "--rounds", "600"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("error:") == 1
    assert re.match(r"error: record file \S+/rounds.sqlite holds what is no round: ", done.stderr.splitlines()[-1])


def test_ratings_that_cannot_be_written_are_said_in_one_line(tmp_path: Path) -> None:
    matches = matches_of(tmp_path, match_opponents="", rating=True)
    (tmp_path / "ratings.json").mkdir()
    matches.poll(2.0, print)
    (line,) = ended(matches)
    assert "ratings.json cannot be written" in line and matches.failures == 1


@pytest.mark.slow
def test_run_is_over_when_every_opponents_last_match_and_the_rating_are_kept(tmp_path: Path) -> None:
    matches_of(tmp_path)
    plan = resolve_training(TrainConfig.of(match_opponents="threshold,random", rating=True))

    def judged(line: dict) -> bool:
        append_line(RunFolder(tmp_path).metrics, {"elapsed_s": 1.0} | line)
        with run_folder(tmp_path, plan.config.identity()) as writer:
            return training_run.Run(
                plan, tmp_path, writer, print, lambda progress: None, lambda: False, 0.0
            )._last_matches_are_kept()

    found = [judged({"match": {"opponent": name, "mode": mode, "steps": steps}}) for name, mode, steps in (
        ("threshold", "rest", 1), ("random", "one", 1), ("random", "rest", 0), ("random", "rest", 1),
    )]  # fmt: skip
    assert not any(found) and judged({"rating": {"steps": 1}})


def test_matches_compute_in_one_thread_beside_the_run_and_in_all_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matches = matches_of(tmp_path)
    threads: list[tuple[int, int]] = []

    class Started(Exception):
        pass

    def start_child(name: str, module: str, spec: MatchesSpec, fds: list[int], number: int, held: ExitStack) -> None:
        threads.append((spec.threads, number))
        raise Started

    monkeypatch.setattr("shmzero.training.match_runner.start_child", start_child)
    monkeypatch.setattr("shmzero.training.match_runner.cores", lambda: 5)
    for start in (lambda: matches.poll(2.0, print), lambda: matches.finish(print, lambda: False)):
        with pytest.raises(Started):
            start()
    assert threads == [(1, 1), (5, 5)]


def test_last_matches_leave_when_they_are_asked_to(tmp_path: Path) -> None:
    said: list[str] = []
    assert matches_of(tmp_path).finish(said.append, lambda: True) == []
    assert "broken off" in said[-1]


def test_checkpoint_of_another_feature_version_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), path)
    of_other_features(path)
    assert arena_main([str(path), "random", "--deals", "2"]) == 2
    assert "feature version 99" in one_line(capsys.readouterr().err)


def test_learner_state_of_another_feature_version_is_one_line(tmp_path: Path) -> None:
    config = TrainConfig().learner_config()
    save_state(Learner(config, "cpu"), tmp_path / "learner.safetensors", {"rows": 0})
    of_other_features(tmp_path / "learner.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "shmzero.train", str(tmp_path), "--rounds", "500", *QUICK],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert "features 99" in done.stderr.splitlines()[-1]


def test_run_of_other_settings_names_what_both_commands_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RecordWriter(tmp_path, TrainConfig.of(seed=1).identity()).close()
    assert train.main([str(tmp_path), "--seed", "2"]) == 2
    line = one_line(capsys.readouterr().err)
    assert "seed: 1 there, 2 now" in line and "another folder" in line and "--out" not in line


@pytest.mark.slow
def test_run_from_before_a_setting_goes_on_where_it_is_off(tmp_path: Path) -> None:
    before = TrainConfig().identity()
    assert not {"redeals", "neurd_share"} & before.keys()
    assert "redeals" not in TrainConfig.of(targets="visits", search="2x8", redeals=3).identity()
    RecordWriter(tmp_path, before).close()
    for settings in ({"redeals": 3}, {"neurd_share": 0.5}):
        with pytest.raises(ConfigError, match=r"(redeals|neurd_share): None there, (3|0\.5) now"):
            RecordWriter(tmp_path, TrainConfig.of(**settings).identity())


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("tensorboard", ["--tensorboard"]), ("matplotlib", None)],
)
def test_missing_package_is_one_line_that_says_how_to_install_it(
    package: str, arguments: list[str] | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for loaded in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)  # a submodule that is there is not looked for in its package
    monkeypatch.setitem(sys.modules, package, None)
    if arguments is not None:
        assert train.main([str(tmp_path / "run"), *arguments]) == 2 and not (tmp_path / "run").exists()
    else:
        match = {"opponent": "random", "mode": "one", "mean": 0.0, "low": -1.0, "high": 1.0}
        append_line(RunFolder(tmp_path).metrics, {"elapsed_s": 1.0, "match": match})
        assert plot.main([str(tmp_path)]) == 2
    assert f"pip install {package}" in one_line(capsys.readouterr().err)


def test_zero_rounds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(tmp_path / "run"), "--rounds", "0"]) == 2 and not (tmp_path / "run").exists()
    assert "rounds is 0; allowed: 1" in one_line(capsys.readouterr().err)


def test_training_that_cannot_begin_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.Terminal, "PLAIN_S", math.inf)  # however long the processes take to be loaded
    assert train.main([str(tmp_path / "new" / "run"), "--opponent-pool", "oldr:0.2", *QUICK]) == 2
    assert "oldr" in one_line(capsys.readouterr().err) and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_time_of_a_run_begins_with_its_call_and_not_with_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig.of(minutes=30, match_opponents="")
    long_ago = time.monotonic() - 1e6
    monkeypatch.setattr(train, "STARTED", long_ago)
    assert not training_run.train(config, tmp_path / "called", stopped=lambda: True)["complete"]
    assert training_run.train(config, tmp_path / "command", started=long_ago)["complete"]


def test_training_without_room_for_its_files_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shmzero.train", str(tmp_path / "run"), "--match-opponents", ""]
    for files in (9, 14, 20):  # of the learner's sockets, of its process, of the fleet
        done = subprocess.run(
            ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *command], capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "run").exists()
        assert re.fullmatch(r"error: .* cannot be started: Too many open files; [^\n]+\n", done.stderr), done.stderr
