"""Files replaced whole: the order of what reaches the disk, full disks, kills in the middle, and whose files they are."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmzero import SearchConfig, files, play_rounds
from shmzero.engine import run as engine_run
from shmzero.engine.config import SelfPlayConfig
from shmzero.errors import RecordError
from shmzero.files import append_line, make_folder, remove_unfinished, write_whole
from shmzero.learner.algorithm import Learner
from shmzero.learner.messages import CheckpointSaved
from shmzero.learner.state import save_state
from shmzero.matches.rating import Ratings
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.runs.checkpoints import remove_old_weights
from shmzero.runs.folder import RECORDS_NAME
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.runs.records import Records
from shmzero.training import run as training_run
from shmzero.training.config import TrainConfig
from shmzero.training.plan import resolve_training

TINY = NetConfig(width=16, hidden=16, blocks=1)


def config_file(folder: Path) -> Path:
    write_whole(folder / "config.toml", "seed = 1\n" * 1000)
    return folder / "config.toml"


def checkpoint(folder: Path) -> Path:
    save_checkpoint(BlobNet(TINY), folder / "net.safetensors")
    return folder / "net.safetensors"


def learner_state(folder: Path) -> Path:
    save_state(Learner(TrainConfig().learner_config(), "cpu"), folder / "learner.safetensors", {})
    return folder / "learner.safetensors"


def ratings(folder: Path) -> Path:
    return Ratings({}, "pool mean", 2, {"note": "x" * 9000}).save(folder)


WRITERS: list[Callable[[Path], Path]] = [config_file, checkpoint, learner_state, ratings]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is done to files in order: "sync NAME" and "rename to NAME"."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        sync(fd)
        done.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")

    def renamed(source: str, target: str) -> None:
        replace(source, target)
        done.append(f"rename {os.path.basename(source)} to {os.path.basename(target)}")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", renamed)
        yield done


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full, as far as this process is concerned."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", WRITERS)
def test_replaced_file_its_content_and_then_its_name_reach_the_disk(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as done:
        path = write(tmp_path)
    temporary = done[0].removeprefix("sync ")
    assert temporary != path.name
    assert done == [f"sync {temporary}", f"rename {temporary} to {path.name}", f"sync {tmp_path.name}"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_replaced_file_on_a_full_disk_is_as_it_was_and_alone(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text("as it was")
    with files_of_at_most(4096), pytest.raises(RecordError, match=f"{path.name} cannot be written: File too large"):
        write(tmp_path)
    assert path.read_text() == "as it was" and list(tmp_path.iterdir()) == [path]


def test_line_on_a_full_disk_leaves_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"a": 1})
    before = path.read_text()
    with files_of_at_most(4096), pytest.raises(RecordError, match="File too large"):
        append_line(path, {"b": "x" * 9000})
    assert path.read_text() == before == '{"a": 1}\n'


def test_line_reaches_the_disk_and_with_the_first_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as done:
        assert append_line(tmp_path / "lines", {}) and not append_line(tmp_path / "lines", {})
    assert done == ["sync lines", f"sync {tmp_path.name}", "sync lines"]


def test_replaced_file_behind_a_link_is_the_one_that_is_meant_and_a_device_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("elsewhere/file")
    write_whole(link, "new")
    assert link.is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == "new"
    os.mkfifo(pipe)
    with pytest.raises(RecordError, match="pipe cannot be written: it is no regular file"):
        write_whole(pipe, "new")
    assert pipe.is_fifo()


def unfinished(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if files.TEMPORARY.fullmatch(name)]


def test_unfinished_file_goes_when_its_writer_is_gone_and_no_other_does(tmp_path: Path) -> None:
    mine = tmp_path / ".shmzero-notes.tmp"
    mine.touch()
    asked, answer = os.pipe(), os.pipe()
    child = os.fork()
    if not child:

        def held_up(fd: int) -> None:
            os.write(asked[1], b"x")
            os.read(answer[0], 1)

        os.fsync = held_up  # type: ignore[assignment]
        write_whole(tmp_path / "file", "new")
        os._exit(0)
    os.read(asked[0], 1)
    (name,) = unfinished(tmp_path)
    remove_unfinished(tmp_path)
    assert unfinished(tmp_path) == [name], "its writer lives"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    remove_unfinished(tmp_path)
    assert unfinished(tmp_path) == [] and list(tmp_path.iterdir()) == [mine]
    remove_unfinished(tmp_path / "nowhere")


def test_run_that_goes_on_removes_what_a_killed_one_had_not_finished(tmp_path: Path) -> None:
    left = tmp_path / ".shmzero-0123456789abcdef0123456789abcdef.tmp"
    left.touch()
    RecordWriter(tmp_path, {}).close()
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS_NAME]


def test_folders_that_were_made_are_told_and_none_is_left_where_one_cannot_be(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b" / "c"
    assert make_folder(inner) == [inner, inner.parent, inner.parent.parent] and make_folder(inner) == []
    with pytest.raises(OSError, match="File name too long"):
        make_folder(tmp_path / "d" / ("e" * 300))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "f"):
        with pytest.raises(OSError, match="File exists|Not a directory"):
            make_folder(place)
    assert sorted(os.listdir(tmp_path)) == ["a", "file"]


def test_old_weights_are_removed_by_the_names_that_they_were_given(tmp_path: Path) -> None:
    names = {"00000001.safetensors", "1.safetensors", "00000002.safetensors", "00000003.safetensors"}
    (tmp_path / "weights").mkdir()
    for name in names:
        (tmp_path / "weights" / name).touch()
    remove_old_weights(tmp_path, kept=1)
    assert set(os.listdir(tmp_path / "weights")) == {"1.safetensors", "00000003.safetensors"}


# --- rounds -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played() -> list[bytes]:
    return play_rounds(HashEvaluator(), 3, SearchConfig(simulations=0))


def main_file_alone(folder: Path, place: Path) -> int:
    """Rounds that are in the file itself, without what lies beside it."""
    place.mkdir()
    shutil.copy(folder / RECORDS_NAME, place)
    return len(Records(place))


def test_records_once_synced_are_in_the_file_itself(tmp_path: Path, played: list[bytes]) -> None:
    writer = RecordWriter(tmp_path / "run", {})
    for number, record in enumerate(played):
        writer.write([(number, [record])])
        writer.sync()
        assert main_file_alone(tmp_path / "run", tmp_path / str(number)) == number + 1
    writer.close()


def test_selfplay_syncs_the_last_of_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("write", "sync"):
        real = getattr(RecordWriter, name)
        monkeypatch.setattr(RecordWriter, name, lambda *a, name=name, real=real: (real(*a), done.append(name))[0])
    engine_run.run(SelfPlayConfig.of(evaluator="hash", preset="light", rounds=20, workers=1), tmp_path)
    assert "write" in done and done[-1] == "sync"


def test_training_syncs_the_rounds_that_a_checkpoint_has_learned_from(tmp_path: Path, played: list[bytes]) -> None:
    config = TrainConfig()
    with run_folder(tmp_path / "run", config.identity()) as writer:
        writer.write([(0, played[:1])])
        run = training_run.Run(
            resolve_training(config), tmp_path / "run", writer, print, lambda progress: None, lambda: False, 0.0
        )
        run._act([CheckpointSaved(steps=1)], None)
        assert main_file_alone(tmp_path / "run", tmp_path / "copy") == 1
