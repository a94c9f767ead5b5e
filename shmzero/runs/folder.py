"""Where a run's folder is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shmzero.errors import ShmzeroError
from shmzero.runs.records import RecordWriter


@contextmanager
def run_folder(folder: Path, settings: dict[str, Any]) -> Iterator[RecordWriter]:
    """The writer of a run folder, which is made where there is none.

    After an error in here before any round was committed, what the writer made is removed again. Raises
    ConfigError where the folder holds a run of other settings, FolderBusy, RecordError.
    """
    writer = RecordWriter(folder, settings)
    try:
        yield writer
    except ShmzeroError:
        writer.abandon()
        raise
    except BaseException:
        writer.close()
        raise
    writer.close()
