"""The SQLite file of a run's records: its tables, how it is opened, and what its errors mean.

Table `rounds` has one row a round: id, unit, players, cards, record (csrc/play/record.h). Table `meta` has the
schema version, the run's settings and the weights that played last. One process writes (record_writer.py), any number
read (records.py).
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from shmzero.errors import ConfigError, RecordError, ShmzeroError
from shmzero.runs.folder import UNLOCKABLE

SCHEMA_VERSION = 1
_LOCK_ERRORS = (
    sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK, sqlite3.SQLITE_IOERR_SHMLOCK, sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMMAP,
)  # fmt: skip

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY, unit INTEGER NOT NULL, players INTEGER NOT NULL, cards INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX rounds_unit ON rounds (unit);
"""


def connect(path: Path, how: Literal["mode=ro", "mode=rw", "mode=ro&immutable=1"]) -> sqlite3.Connection:
    """A connection that has read from the file. Raises RecordError."""
    try:
        connection = sqlite3.connect(
            f"file://{quote(os.fsencode(path.absolute()))}?{how}", uri=True, isolation_level=None, timeout=30
        )
        connection.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise RecordError(f"record file {path} cannot be opened: {reason_of(error, path)}") from None
    return connection


Stamp = tuple[int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """What a record file looks like; None where there is more to it beside it. Raises RecordError."""
    real = os.path.realpath(path)
    try:
        for end in ("wal", "journal"):
            with suppress(FileNotFoundError):
                if os.stat(f"{real}-{end}").st_size:
                    return None
        status = os.stat(real)
    except OSError as error:
        raise RecordError(f"record file {path} cannot be looked at: {error.strerror}") from None
    return status.st_ino, status.st_size, status.st_mtime_ns


def connect_to_read(path: Path) -> tuple[sqlite3.Connection, Stamp | None]:
    """A connection, and the stamp that the file has to keep where it is read without locks. Raises RecordError.

    SQLite writes beside a file that a killed run left even to read it. Where the folder cannot be written it is
    read alone: that is all there is to it, and that it stays so is looked at again after each query.
    """
    if not os.access(path, os.R_OK, effective_ids=True):
        raise RecordError(f"record file {path} cannot be opened: {os.strerror(errno.EACCES)}")
    try:
        return connect(path, "mode=ro"), None
    except RecordError:
        folder = os.path.dirname(os.path.realpath(path))
        if os.access(folder, os.W_OK, effective_ids=True):
            raise
        if (stamp := stamp_of(path)) is None:
            raise RecordError(
                f"record file {path} cannot be read where {folder} cannot be written: its last rounds lie in "
                f"{path.name}-wal, perhaps of a run that is still going on; copy both files to a folder of yours, or "
                "have the owner give the run's command once more"
            ) from None
        return connect(path, "mode=ro&immutable=1"), stamp


FULL_BYTES = 1 << 16
"""With less room than this SQLite can make neither its log nor the index of it, and says so in other words."""
SQLITE_ENDS = ("", "-wal", "-shm", "-journal")
"""What follows the name of a record file in the names of the files that SQLite writes for it."""


def reason_of(error: sqlite3.Error, path: Path) -> str:
    """What SQLite says and what to do about a lock.

    SQLite calls a full disk and a limit of the files' size (ulimit -f) by other names; this calls them by theirs.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        with suppress(OSError):
            room = os.statvfs(os.path.dirname(os.path.realpath(path)))
            if room.f_bavail * room.f_frsize < FULL_BYTES:
                return os.strerror(errno.ENOSPC)
        most_bytes, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if most_bytes != resource.RLIM_INFINITY and _largest_bytes(path) + FULL_BYTES > most_bytes:
            return (
                f"{os.strerror(errno.EFBIG)}: files of this process may have {most_bytes} bytes; "
                "allow larger ones (ulimit -f)"
            )
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{error}: another program has it locked, such as a database browser, or {UNLOCKABLE}"
    if code & 0xFF == sqlite3.SQLITE_PROTOCOL or code in _LOCK_ERRORS:
        return f"{error}: {UNLOCKABLE}"
    return str(error)


def cannot_be_read(path: Path, error: sqlite3.Error) -> RecordError:
    """What to raise where a record file was not read."""
    return RecordError(f"record file {path} cannot be read: {reason_of(error, path)}")


def cannot_be_written(path: Path, error: sqlite3.Error, more: str = "") -> RecordError:
    """What to raise where a record file was not written; `more` is added to the line."""
    return RecordError(f"record file {path} cannot be written: {reason_of(error, path)}{more}")


def no_round(path: Path, error: ValueError) -> RecordError:
    """What to raise where a record is not one."""
    return RecordError(f"record file {path} holds what is no round: {error}")


def _largest_bytes(path: Path) -> int:
    """The size of the largest of the files that SQLite writes for a record file, as far as they can be looked at."""
    sizes = [0]
    for end in SQLITE_ENDS:
        with suppress(OSError):
            sizes.append(os.stat(os.path.realpath(path) + end).st_size)
    return max(sizes)


def _not_readable(path: Path, error: sqlite3.Error) -> ShmzeroError:
    """ConfigError for a file that is another one, RecordError for one that only cannot be read now."""
    strange = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
    if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in strange:
        return ConfigError(f"{path} is no record file of shmzero: {error}")
    return cannot_be_read(path, error)


def is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there are no tables: it was created just now, or its creator was killed before it had them."""
    try:
        return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.Error as error:
        raise _not_readable(path, error) from None


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    except sqlite3.Error as error:
        raise _not_readable(path, error) from None
    if row is None or row[0] != str(SCHEMA_VERSION):
        found = row[0] if row else "none"
        raise ConfigError(f"{path} has schema version {found}; this program reads {SCHEMA_VERSION}")


def rows_of(connection: sqlite3.Connection, path: Path, query: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query. Raises RecordError where the file is damaged or gone."""
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise cannot_be_read(path, error) from None
