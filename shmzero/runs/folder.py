"""A run folder: the names of all that is in it, and the one process that it belongs to.

A folder is written by the process that holds its lock, its owner, and by that process's children.

| name | what it is | who writes it |
|---|---|---|
| rounds.sqlite | the records of the rounds, and the run's settings | the owner, by record_writer.py |
| config.toml | the settings as the run uses them, for --config | the owner |
| metrics.jsonl | a line of numbers every few seconds, every match and rating | the owner |
| tensorboard/ | the same for TensorBoard | the owner |
| checkpoints/ | the network after so many steps of learning; they stay | the learner |
| weights/ | weights by version, on their way to self-play; the owner removes old ones | the learner |
| learner.safetensors | the state that the learner goes on from | the learner |
| ratings.json | ratings of the newest checkpoint and others | the process of matches |
| curves.png | a picture of the metrics | `python -m shmzero.plot` |

Each file is replaced whole or not at all, or grows by whole lines, and is then on the disk (files.py). Read next:
record_writer.py (the rounds), checkpoints.py (the networks), recorder.py (what a run does with finished rounds).
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from shmzero.errors import FolderBusy, RecordError
from shmzero.files import MOST_TRIES, append_line, make_folder, remove_empty, remove_unfinished, write_whole

RECORDS_NAME = "rounds.sqlite"
CHECKPOINT_FOLDER = "checkpoints"
WEIGHTS_FOLDER = "weights"
STATE_NAME = "learner.safetensors"
UNLOCKABLE = "files cannot be locked there, as on some network file systems; use a folder on a local disk"


class RunFolder:
    """Where everything of a run lies, whether it is there yet or not. Any process may ask."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = path / RECORDS_NAME
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / CHECKPOINT_FOLDER
        self.weights = path / WEIGHTS_FOLDER
        self.learner_state = path / STATE_NAME
        self.ratings = path / "ratings.json"
        self.curves = path / "curves.png"


class OwnedFolder(RunFolder):
    """A run folder that belongs to this process, from the lock to its release.

    It remembers what it has made, so that a run that comes to nothing can leave the folder as it was.
    """

    def __init__(self, path: Path) -> None:
        """Lock the folder, which is made where there is none. Raises FolderBusy, RecordError."""
        super().__init__(path)
        self._lock_fd, self._made = _lock(path)
        """What this process made and may remove: files, then folders, the innermost first."""

    def note_made(self, *files: Path) -> None:
        """Note files that this process makes."""
        self._made[:0] = files

    def write_config(self, text: str) -> None:
        """Replace config.toml. Raises RecordError."""
        if write_whole(self.config, text):
            self.note_made(self.config)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. Raises RecordError."""
        if append_line(self.metrics, line):
            self.note_made(self.metrics)

    def remove_unfinished(self) -> None:
        """Remove what a process that was killed had not finished writing."""
        remove_unfinished(self.path)

    def keep(self) -> None:
        """Leave what this process made where it is, whatever comes: rounds are in it."""
        self._made.clear()

    def release(self) -> None:
        """Let other processes have the folder."""
        os.close(self._lock_fd)

    def leave_as_found(self) -> None:
        """Remove what this process made, and only then let others have the folder."""
        for path in self._made:
            with suppress(OSError):  # a read-only disk keeps what it has, a folder what others put there
                path.rmdir() if path.is_dir() else path.unlink()
        self.release()


def _lock(folder: Path) -> tuple[int, list[Path]]:
    """Lock a run folder, which is made where there is none.

    Returns a descriptor, with whose end the lock ends, and the folders that this call made, the innermost
    first. Raises FolderBusy; RecordError where the folder cannot be made or locked.
    """
    made: list[Path] = []
    for _ in range(MOST_TRIES):
        try:
            made = make_folder(folder) + made
        except OSError as error:
            remove_empty(made)
            raise RecordError(f"run folder {folder} cannot be made: {error.strerror}") from None
        try:
            if (fd := _open_locked(folder)) is not None:
                return fd, made
        except RecordError:
            remove_empty(made)
            raise
    raise FolderBusy(f"run folder {folder} is made and removed again by other processes; choose another folder")


def _open_locked(folder: Path) -> int | None:
    """A descriptor of the folder, locked; None where a command that was refused has just removed the folder.

    Raises FolderBusy, RecordError.
    """
    with ExitStack() as undo:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(fd), os.stat(folder)):
                return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            raise FolderBusy(
                f"run folder {folder} is being written by another process; wait for its end, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL):
                raise RecordError(f"run folder {folder} cannot be locked: {error.strerror}: {UNLOCKABLE}") from None
            raise RecordError(f"run folder {folder} cannot be opened: {error.strerror}") from None
        undo.pop_all()
        return fd
