"""Files that are replaced whole or not at all, lines that are added to one, folders that are made.

When a call returns, what it wrote is on the disk and outlives a power cut. This module does not
look at what is in the files. Read next: runs/folder.py.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from shmzero.errors import RecordError

TEMPORARY = re.compile(r"\.shmzero-[0-9a-f]{32}\.tmp")
"""The names that `write_whole` gives to a file that it has not finished."""
MOST_TRIES = 100
"""How often to try again what another process undoes at the same time."""


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where its file system can say so of a folder. Raises OSError."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # it may be written and not be read
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_whole(path: Path, content: bytes | str) -> bool:
    """Replace a file, whole or not at all; returns whether there was none before.

    A symbolic link stays, and what it leads to is replaced. Text is written as the file system encodes its
    names, so that any path may be in it. Raises RecordError; the file is then as it was, and no other one is
    left behind.
    """
    data = os.fsencode(content) if isinstance(content, str) else content
    try:
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():  # a device would be gone
            raise RecordError(f"{path} cannot be written: it is no regular file")
        with _temporary(path.parent) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                fresh = not os.path.lexists(path)
                os.replace(file.name, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(file.name)
                raise
        sync_folder(path.parent)
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror}") from None
    return fresh


def _temporary(folder: Path) -> BinaryIO:
    """A new file in a folder, locked for as long as it is open: `remove_unfinished` leaves it alone."""
    for _ in range(MOST_TRIES):
        file = (folder / f".shmzero-{secrets.token_hex(16)}.tmp").open("xb")
        with suppress(OSError):  # without locks it is not known whose it is, and nobody removes it
            fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was removed before the lock was there
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def remove_unfinished(folder: Path) -> None:
    """Remove from a folder what a killed process of this user left of a `write_whole`."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_abandoned(entry.path)


def _remove_abandoned(path: str) -> None:
    """Remove a temporary file if its writer is gone. Raises OSError where that cannot be known."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer has it locked until it ends
            os.unlink(path)
    finally:
        os.close(fd)


def append_line(path: Path, line: dict[str, Any]) -> bool:
    """Add a line of JSON to a file, which a kill may have left without its last line's end.

    Returns whether there was no such file before. Raises RecordError; the file is then as it was.
    """
    try:
        fresh = not os.path.lexists(path)
        with path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            cut_off = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            data = (b"\n" if cut_off else b"") + json.dumps(line).encode() + b"\n"
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        if fresh:
            sync_folder(path.parent)
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror}") from None
    return fresh


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, and those that it is in, where they are missing; returns those that this call made,
    the innermost first. Raises OSError; none of them is then left.
    """
    made: list[Path] = []
    try:
        for left in reversed(range(MOST_TRIES)):
            try:
                folder.mkdir()
                made.insert(0, folder)
                sync_folder(folder.parent)
                break
            except FileExistsError:
                if folder.is_dir():
                    break
                if os.path.lexists(folder) or not left:
                    raise
            except FileNotFoundError:  # so is the folder it is in, or another process has just removed that
                if not left:
                    raise
                made = make_folder(folder.parent) + made
        return made
    except OSError:
        remove_empty(made)
        raise


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, in this order, as far as they are there and empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def digest_of(path: Path | str) -> str:
    """SHA-256 of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path | None) -> tuple[int, int] | None:
    """Changes when a file is written or replaced; None where there is none."""
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino) if status else None


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder. Raises RecordError where that cannot be looked at."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RecordError(f"{path} cannot be looked at: {error.strerror}") from None
    return True


def is_folder(path: Path) -> bool:
    """Whether there is such a folder. Raises RecordError where that cannot be looked at."""
    return is_there(path) and path.is_dir()
