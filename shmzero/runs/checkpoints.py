"""Networks in a run folder: checkpoints by the learner's step, which stay, and weights by version, which are replaced.

Read next: network.py (a checkpoint as an evaluator).
"""

from __future__ import annotations

import os
from pathlib import Path

from shmzero.errors import RecordError
from shmzero.runs.folder import RunFolder


def numbered_path(folder: Path, number: int) -> Path:
    """Where the weights of a step or version lie."""
    return folder / f"{number:08d}.safetensors"


def numbered(folder: Path) -> list[Path]:
    """The weights in a folder that are named by nothing but a number, in its order; `int(path.stem)` is it.

    Raises RecordError where the folder cannot be looked at.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RecordError(f"folder {folder} cannot be looked at: {error.strerror}") from None
    paths = (folder / name for name in names if name.endswith(".safetensors"))
    found = [path for path in paths if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a training run's folder, in the order of their steps."""
    return numbered(RunFolder(run).checkpoints)


def checkpoint_path(run: Path, steps: int) -> Path:
    """Where the checkpoint of a step lies."""
    return numbered_path(RunFolder(run).checkpoints, steps)


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the highest step in a training run's folder."""
    return next(reversed(checkpoints(run)), None)


def weights_path(run: Path, version: int) -> Path:
    """Where the weights of a version lie."""
    return numbered_path(RunFolder(run).weights, version)


def newest_version(run: Path) -> int:
    """The version of the newest weights in a run folder, 0 where there are none."""
    return max((int(path.stem) for path in numbered(RunFolder(run).weights)), default=0)


def remove_old_weights(run: Path, kept: int) -> None:
    """Remove all but the newest weights that were published, by the names that they were given."""
    for old in numbered(RunFolder(run).weights)[:-kept]:
        if old == weights_path(run, int(old.stem)):
            old.unlink(missing_ok=True)
