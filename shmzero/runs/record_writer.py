"""The one writer of a run folder's records. What it has committed is finished, whoever is killed then.

Read next: recorder.py, through which a run uses it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shmzero import _core
from shmzero.errors import ConfigError, RecordError, ShmzeroError
from shmzero.files import sync_folder
from shmzero.runs.database import (
    SCHEMA,
    SCHEMA_VERSION,
    SQLITE_ENDS,
    cannot_be_read,
    cannot_be_written,
    check_schema,
    connect,
    is_new,
    no_round,
    rows_of,
)
from shmzero.runs.folder import OwnedFolder
from shmzero.runs.ledger import UnitLedger

RECORD_HEAD = struct.Struct("<xBB5xQ")
"""What a record begins with: players, cards, and in its last eight bytes the round's id (csrc/play/record.h)."""


@contextmanager
def run_folder(
    folder: Path, settings: Mapping[str, Any], old_names: Mapping[str, str] | None = None
) -> Iterator[RecordWriter]:
    """The writer of a run folder, which is made where there is none.

    settings: what makes the run what it is. old_names: names that earlier versions used in it, with those of now.

    After an error in here before any round was committed, what the writer made is removed again. Raises
    ConfigError where the folder holds a run of other settings, FolderBusy, RecordError.
    """
    writer = RecordWriter(folder, settings, old_names)
    try:
        yield writer
    except ShmzeroError:
        writer.abandon()
        raise
    except BaseException:
        writer.close()
        raise
    writer.close()


class RecordWriter:
    """The one writer of a run folder's records; the folder is its own as well. Finished means committed."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], old_names: Mapping[str, str] | None = None) -> None:
        """Open or create, the folder as well; see run_folder for the arguments.

        Raises ConfigError where it holds a run of other settings, FolderBusy where another process writes there,
        RecordError; what it made is then removed again.
        """
        self.folder = OwnedFolder(folder)
        self.path = self.folder.records
        self._writes_ahead = False
        try:
            self._create()
            self._connection = connect(self.path, "mode=rw")
        except ShmzeroError:
            self.folder.leave_as_found()
            raise
        try:
            self._prepare(settings, old_names or {})
            self.folder.remove_unfinished()
        except ShmzeroError:
            self._connection.close()
            self.folder.leave_as_found()
            raise

    def _create(self) -> None:
        """Make an empty file where there is none."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            # SQLite's own beside it are made by this connection, too.
            self.folder.note_made(*(Path(f"{self.path}{end}") for end in SQLITE_ENDS))
            sync_folder(self.path.parent)
        except FileExistsError:
            pass
        except OSError as error:
            raise RecordError(f"record file {self.path} cannot be made: {error.strerror}") from None

    def _prepare(self, settings: Mapping[str, Any], old_names: Mapping[str, str]) -> None:
        """Make the tables of a new file, or look whether this one is of such a run. Raises ConfigError, RecordError."""
        if not is_new(self._connection, self.path):
            check_schema(self._connection, self.path)
            self._check_settings(settings, old_names)
            return
        try:
            self._write_ahead()
            self._connection.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA.split(";\n"):
                if statement.strip():
                    self._connection.execute(statement)
            rows = [("schema", str(SCHEMA_VERSION)), ("settings", json.dumps(dict(settings)))]
            self._connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise cannot_be_written(self.path, error) from None

    def _check_settings(self, settings: Mapping[str, Any], old_names: Mapping[str, str]) -> None:
        """Raises ConfigError where these are not the settings of the file's run."""
        rows = rows_of(self._connection, self.path, "SELECT value FROM meta WHERE key = 'settings'")
        kept = json.loads(rows[0][0]) if rows else {}
        known = {old_names.get(name, name): value for name, value in kept.items()}
        wanted = json.loads(json.dumps(dict(settings)))
        differing = [
            f"{key}: {known.get(key)!r} there, {wanted.get(key)!r} now"
            for key in sorted(known.keys() | wanted.keys())
            if known.get(key) != wanted.get(key)
        ]
        if differing:
            raise ConfigError(
                f"{self.path.parent} holds a run of other settings ({'; '.join(differing)}); "
                "use them, or another folder"
            )

    def _write_ahead(self) -> None:
        """Turn the write-ahead log on before the first change. Raises sqlite3.Error.

        A writer that only looks leaves the file as it is.
        """
        if not self._writes_ahead:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._writes_ahead = True

    def units(self) -> UnitLedger:
        """The units that are finished."""
        in_progress = self.in_progress()
        found = self._each("SELECT DISTINCT unit FROM rounds ORDER BY unit")
        return UnitLedger(unit for (unit,) in found if unit not in in_progress)

    def in_progress(self) -> dict[int, list[bytes]]:
        """Games of which only the first rounds are there, with the records of these in order."""
        some = rows_of(self._connection, self.path, "SELECT record FROM rounds LIMIT 1")
        try:
            if not some or _core.decode_record(some[0][0])["rounds_of_game"] == 0:
                return {}
            found = {}
            # The index alone tells the last rounds, and one record at a time is in memory.
            lasts = "SELECT max(id) AS last FROM rounds GROUP BY unit"
            query = f"SELECT unit, record FROM ({lasts}) CROSS JOIN rounds ON id = last"
            for unit, record in self._each(query):
                last = _core.decode_record(record)
                if last["round_of_game"] + 1 < last["rounds_of_game"]:
                    query = "SELECT record FROM rounds WHERE unit = ? ORDER BY id"
                    found[unit] = [row[0] for row in rows_of(self._connection, self.path, query, (unit,))]
            return found
        except ValueError as error:
            raise no_round(self.path, error) from None

    def _each(self, query: str) -> Iterator[Any]:
        """Rows of a query one by one. Raises RecordError where the file is damaged or gone."""
        try:
            yield from self._connection.execute(query)
        except sqlite3.Error as error:
            raise cannot_be_read(self.path, error) from None

    def weights(self) -> tuple[int, str | None] | None:
        """Version and digest of the weights that played last; None where nothing says."""
        found = rows_of(self._connection, self.path, "SELECT value FROM meta WHERE key = 'weights'")
        if not found:
            return None
        version, digest = json.loads(found[0][0])
        return version, digest

    def set_weights(self, version: int, digest: str | None) -> None:
        """Note the weights that play from now on. Raises RecordError."""
        try:
            self._write_ahead()
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('weights', ?)", (json.dumps([version, digest]),)
            )
        except sqlite3.Error as error:
            raise cannot_be_written(self.path, error) from None

    def count(self) -> int:
        """How many rounds the file has."""
        return int(rows_of(self._connection, self.path, "SELECT count(*) FROM rounds")[0][0])

    def write(self, units: Iterable[tuple[int, list[bytes]]]) -> int:
        """Commit rounds of units in one transaction; returns the number of rounds that were new.

        A round that is there already stays as it is. Raises RecordError, with nothing of this batch
        written, where the disk is full or gone.
        """
        rows = []
        for unit, records in units:
            for record in records:
                players, cards, id = RECORD_HEAD.unpack_from(record)
                rows.append((id, unit, players, cards, record))
        try:
            self._write_ahead()
            self._connection.execute("BEGIN IMMEDIATE")
            before = self._connection.total_changes
            self._connection.executemany("INSERT OR IGNORE INTO rounds VALUES (?, ?, ?, ?, ?)", rows)
            new = self._connection.total_changes - before
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise cannot_be_written(self.path, error, "; everything committed before is intact") from None
        return new

    def sync(self) -> None:
        """Have what is committed on the disk, whatever becomes of the power. Raises RecordError.

        A commit alone leaves that to the system, and a power cut may then cost the last ones.
        """
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise cannot_be_written(self.path, error) from None

    def close(self) -> None:
        """End writing. Another process may write then."""
        self._disconnect()
        self.folder.release()

    def _disconnect(self) -> None:
        """Close the file so that nothing lies beside it, and it can be read where nothing can be written."""
        with suppress(sqlite3.Error):  # a reader has it open, or the disk is full: it stays as it is
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    def abandon(self) -> None:
        """End writing after an error: where no round is committed, what this writer made is removed again."""
        empty = False
        with suppress(RecordError):  # rounds that cannot be counted may be there
            empty = self.count() == 0
        if not empty:
            self.folder.keep()
        self._disconnect()
        self.folder.leave_as_found()
