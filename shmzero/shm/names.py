"""Files of ours in /dev/shm: how they are named, made, opened, locked and removed.

Other users may put files there as well. What is opened is looked at first, and only a regular file of this
user that nobody else may open is used, locked or removed. A file that nobody holds a lock on is a dead leftover.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress

import posix_ipc

from shmzero import _core
from shmzero.errors import ConfigError, SegmentError

PREFIX = "/shmzero-"
UNNAMED = re.compile(PREFIX + r"(?:[0-9]+-[0-9a-f]{16}|unnamed-[0-9]+-[0-9a-f]{8})")
"""Names that nobody chose: those of `nameless_file` and of `unnamed_service`."""
FOLDER = "/dev/shm"


class NotOurs(SegmentError):
    """A file under our prefix that another user made, may open, or that is no file at all."""


def nameless_file(label: str) -> int:
    """The descriptor of a new, empty file in memory without a name. `label` is what /proc shows for it.

    Where the kernel or a sandbox has no memfd_create, it is a file of /dev/shm whose name goes at once.
    Raises OSError where there are no descriptors left, SegmentError where there is no such /dev/shm either.
    """
    try:
        return _core.memory_file(label)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise
    path = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    fd = create_file(path)
    assert fd is not None, path
    unlink_file(fd, path)
    return fd


def service_path(name: str) -> str:
    """The name in shared memory of a service. Raises ConfigError for one that cannot be."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ConfigError(f"service name is {name!r}; allowed: up to 100 letters, digits, _ . and -")
    return PREFIX + name


def unnamed_service() -> str:
    """A fresh name for a service that was given none.

    Nobody starts another server under it. So what one that was killed has left is removed by the next that starts.
    """
    return f"unnamed-{os.getpid()}-{secrets.token_hex(4)}"


def inode_of(path: str) -> int:
    """The inode of the file behind a name in shared memory; 0 where there is none.

    Raises SegmentError where it cannot be looked at: it may be there.
    """
    try:
        return os.stat(FOLDER + path).st_ino
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise SegmentError(f"shared memory {FOLDER}{path} cannot be looked at: {error.strerror}") from None


def sweep_leftovers() -> list[str]:
    """Unlink what killed processes of this user left that cannot have a successor; returns the names.

    A dead service that somebody named stays: its requests and its version of weights wait for the next.
    """
    swept = []
    for path, fd in dead_files(named=False):
        with suppress(SegmentError):  # the folder may be written to no more
            unlink_file(fd, path)
            swept.append(path[1:])
    return swept


def dead_files(*, named: bool) -> Iterator[tuple[str, int]]:
    """Files of this user under our prefix that nobody holds, each open and locked until the next is asked for."""
    try:
        entries = sorted(os.listdir(FOLDER))
    except OSError:
        return  # no folder, no leftovers
    for entry in entries:
        path = "/" + entry
        if not path.startswith(PREFIX) or bool(UNNAMED.fullmatch(path)) == named:
            continue
        try:
            fd = open_file(path)
        except SegmentError:
            continue
        if fd is not None:
            try:
                if lock_file(fd):
                    yield path, fd
            finally:
                os.close(fd)


def create_file(path: str) -> int | None:
    """A new file of that name that this user alone may open; None where there is one already."""
    try:
        fd: int = posix_ipc.SharedMemory(path, posix_ipc.O_CREX, mode=0o600).fd
    except posix_ipc.ExistentialError:
        _check_folder()
        return None
    except (OSError, ValueError, posix_ipc.Error) as error:
        raise SegmentError(
            f"shared memory {FOLDER}{path} cannot be created: {error}; services need a {FOLDER} that you may write to"
        ) from None
    os.fchmod(fd, 0o600)  # whatever the umask has left of it
    return fd


def open_file(path: str) -> int | None:
    """The file of that name; None where there is none. Raises NotOurs before it touches another user's."""
    try:
        _check_ours(os.lstat(FOLDER + path), path)
        fd: int = posix_ipc.SharedMemory(path).fd
    except (FileNotFoundError, posix_ipc.ExistentialError):
        _check_folder()
        return None
    except (OSError, ValueError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory {FOLDER}{path} cannot be opened: {error}") from None
    try:
        _check_ours(os.fstat(fd), path)  # it may be another one by now
    except NotOurs:
        os.close(fd)
        raise
    return fd


def _check_folder() -> None:
    """Raises SegmentError where there is no /dev/shm."""
    if not os.path.isdir(FOLDER):
        raise SegmentError(
            f"there is no {FOLDER}, where services have their memory: have one mounted "
            f"(mount -t tmpfs tmpfs {FOLDER}), or use a BatchedEvaluator, which needs none"
        )


def _check_ours(status: os.stat_result, path: str) -> None:
    """Raises NotOurs for what another user made or may open: that user could read the rows and forge the answers."""
    if status.st_uid != os.geteuid():
        try:
            owner = f"{pwd.getpwuid(status.st_uid).pw_name} (uid {status.st_uid})"
        except KeyError:
            owner = f"uid {status.st_uid}"
        raise NotOurs(f"{FOLDER}{path} belongs to another user, {owner}; use another service name")
    if not stat.S_ISREG(status.st_mode):
        raise NotOurs(f"{FOLDER}{path} is not a regular file; remove it, or use another service name")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise NotOurs(
            f"{FOLDER}{path} may be opened by other users (its mode is {mode:04o}); "
            "remove it, or use another service name"
        )


def unlink_file(fd: int, path: str) -> None:
    """Remove the name of our open file, if it is still this file's.

    Raises SegmentError where the name cannot be looked at or may not be removed.
    """
    if inode_of(path) != os.fstat(fd).st_ino:
        return
    try:
        posix_ipc.unlink_shared_memory(path)
    except posix_ipc.ExistentialError:
        pass  # swept
    except (OSError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory {FOLDER}{path} cannot be removed: {error}") from None


def lock_file(fd: int) -> bool:
    """Whether the file is now ours. The lock goes with the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
