"""Records of finished rounds: one SQLite file, one writer, any number of readers.

Table `rounds` has one row a round: id, players, cards, record (csrc/play/record.h). Table `meta` has the
schema version and the run's settings. `python -m shmzero.records FILE` shows one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.errors import ConfigError, FolderBusy, RecordError, ShmzeroError
from shmzero.files import (
    MOST_TRIES,
    append_line,
    is_folder,
    is_there,
    make_folder,
    remove_empty,
    remove_unfinished,
    sync_folder,
    write_whole,
)
from shmzero.runs.ledger import UnitLedger

SCHEMA_VERSION = 1
FILE_NAME = "rounds.sqlite"
UNLOCKABLE = "files cannot be locked there, as on some network file systems; use a folder on a local disk"
_LOCK_ERRORS = (
    sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK, sqlite3.SQLITE_IOERR_SHMLOCK, sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMMAP,
)  # fmt: skip

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY, unit INTEGER NOT NULL, players INTEGER NOT NULL, cards INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX rounds_unit ON rounds (unit);
"""


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


def _connect(path: Path, how: Literal["mode=ro", "mode=rw", "mode=ro&immutable=1"]) -> sqlite3.Connection:
    """A connection that has read from the file. Raises RecordError."""
    try:
        connection = sqlite3.connect(
            f"file://{quote(os.fsencode(path.absolute()))}?{how}", uri=True, isolation_level=None, timeout=30
        )
        connection.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise RecordError(f"record file {path} cannot be opened: {_why(error, path)}") from None
    return connection


Stamp = tuple[int, int, int]


def _stamp(path: Path) -> Stamp | None:
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


def _connect_to_read(path: Path) -> tuple[sqlite3.Connection, Stamp | None]:
    """A connection, and the stamp that the file has to keep where it is read without locks. Raises RecordError.

    SQLite writes beside a file that a killed run left even to read it. Where the folder cannot be written it is
    read alone: that is all there is to it, and that it stays so is looked at again after each query.
    """
    if not os.access(path, os.R_OK, effective_ids=True):
        raise RecordError(f"record file {path} cannot be opened: {os.strerror(errno.EACCES)}")
    try:
        return _connect(path, "mode=ro"), None
    except RecordError:
        folder = os.path.dirname(os.path.realpath(path))
        if os.access(folder, os.W_OK, effective_ids=True):
            raise
        if (stamp := _stamp(path)) is None:
            raise RecordError(
                f"record file {path} cannot be read where {folder} cannot be written: its last rounds lie in "
                f"{path.name}-wal, perhaps of a run that is still going on; copy both files to a folder of yours, or "
                "have the owner give the run's command once more"
            ) from None
        return _connect(path, "mode=ro&immutable=1"), stamp


FULL_BYTES = 1 << 16
"""With less room than this SQLite can make neither its log nor the index of it, and says so in other words."""
SQLITE_ENDS = ("", "-wal", "-shm", "-journal")
"""What follows the name of a record file in the names of the files that SQLite writes for it."""


def _why(error: sqlite3.Error, path: Path) -> str:
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
    return RecordError(f"record file {path} cannot be read: {_why(error, path)}")


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether there are no tables: it was created just now, or its creator was killed before it had them."""
    try:
        return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.Error as error:
        raise _not_readable(path, error) from None


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    except sqlite3.Error as error:
        raise _not_readable(path, error) from None
    if row is None or row[0] != str(SCHEMA_VERSION):
        found = row[0] if row else "none"
        raise ConfigError(f"{path} has schema version {found}; this program reads {SCHEMA_VERSION}")


def _query(connection: sqlite3.Connection, path: Path, query: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query. Raises RecordError where the file is damaged or gone."""
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise RecordError(f"record file {path} cannot be read: {_why(error, path)}") from None


class RecordWriter:
    """The one writer of a run folder's records, and of the files beside them. Finished means committed."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open or create, the folder as well. Raises ConfigError where it holds a run of other settings,
        FolderBusy where another process writes there, RecordError; what it made is then removed again."""
        self.path = folder / FILE_NAME
        self._writes_ahead = False
        self._lock_fd, self._made = _lock(folder)
        """What this writer made and may remove: files, then folders, the innermost first."""
        try:
            self._create()
            self._connection = _connect(self.path, "mode=rw")
        except ShmzeroError:
            self._leave_as_found()
            raise
        try:
            new = _is_new(self._connection, self.path)
            if not new:
                _check_schema(self._connection, self.path)
                self._check_settings(settings)
            else:
                self._write_ahead()
                rows = [("schema", str(SCHEMA_VERSION)), ("settings", json.dumps(dict(settings)))]
                self._connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        self._connection.execute(statement)
                self._connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                self._connection.execute("COMMIT")
            remove_unfinished(folder)
        except sqlite3.Error as error:
            self._connection.close()
            self._leave_as_found()
            raise RecordError(f"record file {self.path} cannot be written: {_why(error, self.path)}") from None
        except ShmzeroError:
            self._connection.close()
            self._leave_as_found()
            raise

    def _create(self) -> None:
        """Make an empty file where there is none."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            # SQLite's own beside it are made by this connection, too.
            self._made = [self.path, *(Path(f"{self.path}-{end}") for end in ("wal", "shm", "journal")), *self._made]
            sync_folder(self.path.parent)
        except FileExistsError:
            pass
        except OSError as error:
            raise RecordError(f"record file {self.path} cannot be made: {error.strerror}") from None

    def _write_ahead(self) -> None:
        """Turn the write-ahead log on before the first change. Raises sqlite3.Error.

        A writer that only looks leaves the file as it is.
        """
        if not self._writes_ahead:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._writes_ahead = True

    def _leave_as_found(self) -> None:
        """Remove what this writer made, and only then let others have the folder. The connection is closed."""
        for path in self._made:
            with suppress(OSError):  # a read-only disk keeps what it has, a folder what others put there
                path.rmdir() if path.is_dir() else path.unlink()
        os.close(self._lock_fd)

    def write_file(self, name: str, text: str) -> None:
        """Replace a file of the run beside the records, whole or not at all. Raises RecordError."""
        if write_whole(self.path.parent / name, text):
            self._made.insert(0, self.path.parent / name)

    def append_line(self, name: str, line: dict[str, Any]) -> None:
        """Add a line of JSON to a file of the run beside the records. Raises RecordError."""
        if append_line(self.path.parent / name, line):
            self._made.insert(0, self.path.parent / name)

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
        known = json.loads(row[0]) if row else {}
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

    def units(self) -> UnitLedger:
        """The units that are finished."""
        begun = self.begun()
        found = self._each("SELECT DISTINCT unit FROM rounds ORDER BY unit")
        return UnitLedger(unit for (unit,) in found if unit not in begun)

    def begun(self) -> dict[int, list[bytes]]:
        """Games of which only the first rounds are there, with the records of these in order."""
        some = _query(self._connection, self.path, "SELECT record FROM rounds LIMIT 1")
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
                    found[unit] = [row[0] for row in _query(self._connection, self.path, query, (unit,))]
            return found
        except ValueError as error:
            raise RecordError(f"record file {self.path} holds what is no round: {error}") from None

    def _each(self, query: str) -> Iterator[Any]:
        """Rows of a query one by one. Raises RecordError where the file is damaged or gone."""
        try:
            yield from self._connection.execute(query)
        except sqlite3.Error as error:
            raise RecordError(f"record file {self.path} cannot be read: {_why(error, self.path)}") from None

    def weights(self) -> tuple[int, str | None] | None:
        """Version and digest of the weights that played last; None where nothing says."""
        found = _query(self._connection, self.path, "SELECT value FROM meta WHERE key = 'weights'")
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
            raise RecordError(f"record file {self.path} cannot be written: {_why(error, self.path)}") from None

    def count(self) -> int:
        """How many rounds the file has."""
        return int(_query(self._connection, self.path, "SELECT count(*) FROM rounds")[0][0])

    def write(self, units: Iterable[tuple[int, list[bytes]]]) -> int:
        """Commit rounds of units in one transaction; returns the number of rounds that were new.

        A round that is there already stays as it is. Raises RecordError, with nothing of this batch
        written, where the disk is full or gone.
        """
        rows = []
        for unit, records in units:
            for record in records:
                head = np.frombuffer(record, "<u8", 1, offset=8)
                rows.append((int(head[0]), unit, record[1], record[2], record))
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
            raise RecordError(
                f"record file {self.path} cannot be written: {_why(error, self.path)}; "
                "everything committed before is intact"
            ) from None
        return new

    def sync(self) -> None:
        """Have what is committed on the disk, whatever becomes of the power. Raises RecordError.

        A commit alone leaves that to the system, and a power cut may then cost the last ones.
        """
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise RecordError(f"record file {self.path} cannot be written: {_why(error, self.path)}") from None

    def close(self) -> None:
        """End writing. Another process may write then."""
        self._disconnect()
        os.close(self._lock_fd)

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
            self._made.clear()
        self._disconnect()
        self._leave_as_found()


class Records:
    """Read access to a record file, or to a run folder's. It is open until `close`, or to the end of a `with` block.

    `len` is the number of rounds; to iterate gives their records by ascending round id.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises ConfigError or RecordError where it is none that this version reads."""
        self.path = Path(path)
        if is_folder(self.path):
            self.path = self.path / FILE_NAME
        if not is_there(self.path):
            raise ConfigError(f"there is no record file {self.path}")
        self._connection, self._stamp = _connect_to_read(self.path)
        try:
            if _is_new(self._connection, self.path):
                raise ConfigError(f"there are no rounds in {self.path} yet")
            _check_schema(self._connection, self.path)
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
        rows = _query(self._connection, self.path, query, values)
        if self._stamp is not None and _stamp(self.path) != self._stamp:
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
            raise RecordError(f"record file {self.path} holds what is no round: {error}") from None
