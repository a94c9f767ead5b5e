"""A run folder has one owner: two commands that meet in it, in every order, and what each leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shmzero import SearchConfig, play_rounds
from shmzero.errors import ConfigError, FolderBusy, RecordError
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.runs.record_writer import run_folder
from shmzero.runs.records import Records

STOPS = {"open", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "fcntl.flock", "sqlite3.connect"}
"""Audit events: before each a command can be held up."""


class Stepped(threading.Thread):
    """A thread that is led from one file operation to the next."""

    def __init__(self, body: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self._left = 0
        self._turn, self._rest = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False

    def run(self) -> None:
        self._turn.acquire()
        try:
            self._body()
        finally:
            self.over = True
            self._rest.release()

    def before_operation(self) -> None:
        if self._left == 0:
            self._rest.release()
            self._turn.acquire()
        self._left -= 1

    def advance(self, operations: int) -> None:
        """Let it do so many more operations, or end."""
        if not self.over:
            self._left = operations
            self._turn.release()
            self._rest.acquire()


def stop_before_operations() -> None:
    """From now on, in this process for good, a Stepped thread rests before each operation on files."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in STOPS and isinstance(current := threading.current_thread(), Stepped):
            current.before_operation()

    sys.addaudithook(hook)


def meetings(kinds: list[str], most: int, folder: str) -> None:
    """Print as JSON what two commands of these kinds left behind, for every order of their operations
    with up to three changes from one to the other. `folder`: for the runs."""
    record = play_rounds(HashEvaluator(), 1, SearchConfig(simulations=0))[0]
    stop_before_operations()
    found: dict[str, int] = {}
    for orders in itertools.product(range(most), repeat=2):
        root = Path(tempfile.mkdtemp(dir=folder))
        outcomes: list[str] = ["", ""]

        def command(index: int, root: Path = root, outcomes: list[str] = outcomes) -> None:
            what, seed = kinds[index].split()
            try:
                with run_folder(root / "new" / "run", {"seed": seed}) as writer:
                    if what == "fails":
                        raise RecordError("no room")
                    writer.write([(0, [record])])
                outcomes[index] = "done"
            except FolderBusy:
                outcomes[index] = "busy"
            except ConfigError as error:
                outcomes[index] = "other" if "other settings" in str(error) else repr(error)
            except RecordError as error:
                outcomes[index] = "failed" if str(error) == "no room" else repr(error)
            except BaseException as error:
                outcomes[index] = repr(error)

        threads = [Stepped(lambda: command(0)), Stepped(lambda: command(1))]
        for thread in threads:
            thread.start()
        for thread, operations in zip([*threads, *threads], [*orders, 1000, 1000], strict=True):
            thread.advance(operations)
        for thread in threads:
            thread.join()
        try:
            left = f"{len(Records(root / 'new' / 'run'))} of {Records(root / 'new' / 'run').settings()['seed']}"
        except ConfigError:
            files = [path for path in root.rglob("*") if not path.is_dir()]
            left = f"files {files}" if files else "folders" if any(root.iterdir()) else "nothing"
        key = " ".join([*outcomes, left])
        found[key] = found.get(key, 0) + 1
        shutil.rmtree(root)
    print(json.dumps(found))


@pytest.mark.parametrize(
    ("kinds", "allowed"),
    [
        (["plays 1", "plays 2"], {"done other 1 of 1", "other done 1 of 2", "done busy 1 of 1", "busy done 1 of 2"}),
        (["plays 1", "fails 2"], {"done failed 1 of 1", "done other 1 of 1", "done busy 1 of 1", "busy failed nothing",
                                  "busy failed folders"}),
        (["fails 1", "fails 2"], {"failed failed nothing", "busy failed nothing", "failed busy nothing",
                                  "busy failed folders", "failed busy folders", "failed failed folders"}),
    ],
)  # fmt: skip
def test_run_folder_two_commands_that_meet_in_any_order_never_cost_each_other_a_round(
    kinds: list[str], allowed: set[str], tmp_path: Path
) -> None:
    """Where neither commits a round nothing is left but, at most, a folder that the one had made and could
    not remove because the other was in it."""
    memory = os.access("/dev/shm", os.W_OK)  # hundreds of runs: where nothing has to reach a disk
    with tempfile.TemporaryDirectory(dir="/dev/shm" if memory else tmp_path) as folder:
        program = f"from tests.runs.test_run_folder import meetings; meetings({kinds!r}, 17, {folder!r})"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) <= allowed, found
    assert len(found) > 1, "they have met in one way only"


def test_run_folder_after_an_error_only_what_it_made_is_removed(tmp_path: Path) -> None:
    """A file of the user's may have come meanwhile, under any name."""
    folder = tmp_path / "new" / "run"
    with pytest.raises(RecordError, match="no room"), run_folder(folder, {}) as writer:
        (folder / "config.toml").write_text("mine")
        (folder / "config.tmp").write_text("mine as well")
        writer.folder.append_metrics({"a": 1})
        writer.folder.write_config("ours")  # in the user's place
        raise RecordError("no room")
    assert sorted(path.name for path in folder.iterdir()) == ["config.tmp", "config.toml"]
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(RecordError, match="no room"), run_folder(folder, {}) as writer:
        for text in ("first", "second"):
            writer.folder.write_config(text)
            writer.folder.append_metrics({"a": text})
        assert (folder / "config.toml").read_text() == "second"
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        raise RecordError("no room")
    assert list(folder.iterdir()) == [], "the folder was there before"
    folder.rmdir()
    with pytest.raises(RecordError, match="no room"), run_folder(folder, {}) as writer:
        raise RecordError("no room")
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
