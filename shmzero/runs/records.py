"""Records of finished rounds, read: any number of processes may, also while the run goes on.

`python -m shmzero.records FILE` shows some. Read next: record_writer.py (who writes them).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ConfigError, RecordError, ShmzeroError
from shmzero.files import is_folder, is_there
from shmzero.runs.database import check_schema, connect_to_read, is_new, no_round, rows_of, stamp_of
from shmzero.runs.folder import RunFolder


class Records:
    """Read access to a record file, or to a run folder's. It is open until `close`, or to the end of a `with` block.

    `len` is the number of rounds; to iterate gives their records by ascending round id.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises ConfigError or RecordError where it is none that this version reads."""
        self.path = Path(path)
        if is_folder(self.path):
            self.path = RunFolder(self.path).records
        if not is_there(self.path):
            raise ConfigError(f"there is no record file {self.path}")
        self._connection, self._stamp = connect_to_read(self.path)
        try:
            if is_new(self._connection, self.path):
                raise ConfigError(f"there are no rounds in {self.path} yet")
            check_schema(self._connection, self.path)
        except ShmzeroError:
            self._connection.close()
            raise

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Whoever reads on gets a RecordError."""
        self._connection.close()

    def _query(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        rows = rows_of(self._connection, self.path, query, values)
        if self._stamp is not None and stamp_of(self.path) != self._stamp:
            raise RecordError(f"record file {self.path} is being written again; open it once more")
        return rows

    def __len__(self) -> int:
        return int(self._query("SELECT count(*) FROM rounds")[0][0])

    def settings(self) -> dict[str, Any]:
        """Settings of the run that made the rounds."""
        rows = self._query("SELECT value FROM meta WHERE key = 'settings'")
        settings: dict[str, Any] = json.loads(rows[0][0])
        return settings

    def __iter__(self) -> Iterator[bytes]:
        """Records by ascending round id."""
        return self.read()

    def read(self, first: int = 0, most: int | None = None) -> Iterator[bytes]:
        """Records with ids from `first` on, at most `most`; read in short transactions."""
        left = most if most is not None else sys.maxsize
        while left > 0:
            rows = self._query(
                "SELECT id, record FROM rounds WHERE id >= ? ORDER BY id LIMIT ?", (first, min(left, 1000))
            )
            yield from (record for _, record in rows)
            if len(rows) < min(left, 1000):
                return
            left -= len(rows)
            first = rows[-1][0] + 1

    def newest(self, most: int) -> list[bytes]:
        """The `most` records with the highest ids, by ascending id."""
        query = "SELECT record FROM rounds ORDER BY id DESC LIMIT ?"
        return [row[0] for row in self._query(query, (most,))][::-1]

    def replay(self, first: int = 0, most: int | None = None, seat_seed: int = 0) -> dict[str, NDArray[Any]]:
        """Training tensors of the records, one row a searched decision (csrc/play/replay.h).

        features [N, 256] f16 · masks [N] u64 · policies [N, 52] f32 · values [N] f32 · root_values ·
        ids · plies · seats · versions · seat_features [N, 256] and seat_values [N] of a random seat.
        Where a policy plays without a search, a network with a trunk for values alone is not asked for them:
        root_values are 0. Raises RecordError for bytes that are no round.
        """
        try:
            return _core.replay(list(self.read(first, most)), seat_seed)
        except ValueError as error:
            raise no_round(self.path, error) from None
