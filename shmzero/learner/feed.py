"""Records on their way into the learner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shmzero import _core
from shmzero.runs.folder import RunFolder
from shmzero.runs.records import Records

PIPE_BYTES = 1 << 20


class RecordPipe:
    """The reading end of the parent's frames."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        """Whether the parent has sent the last one."""
        os.set_blocking(fd, False)
        self._left = b""

    def read(self) -> list[bytes]:
        """Records that have come; never blocks."""
        parts = [self._left]
        try:
            while part := os.read(self.fd, PIPE_BYTES):
                parts.append(part)
            self.ended = True
        except BlockingIOError:
            pass
        data = b"".join(parts)
        frames, used = _core.read_frames(data)
        self._left = data[used:]
        return [record for _, record, _ in frames]


def newest_records(folder: Path, rows: int) -> Iterator[list[bytes]]:
    """The newest records that hold about `rows` searched decisions, oldest first, in pieces."""
    if not RunFolder(folder).records.exists():
        return
    with Records(folder) as records:
        sample = records.newest(200)
        decisions = sum(len(_core.decode_record(record)["searched"]) for record in sample)
        if decisions:
            wanted = records.newest(rows * len(sample) // decisions + 1)
            for at in range(0, len(wanted), 1000):
                yield wanted[at : at + 1000]


def ends_game(record: bytes) -> bool:
    found = _core.decode_record(record)
    return found["round_of_game"] is not None and found["round_of_game"] + 1 == found["rounds_of_game"]
