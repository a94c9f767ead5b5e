"""One child process: started with a spec and inherited files, gone when its parent is, and what it said last.

Knows not what the child does. Read next: line_socket.py, how both talk."""

from __future__ import annotations

import argparse
import errno
import functools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmzero import _core
from shmzero.errors import StartError
from shmzero.shm.names import nameless_file


@dataclass
class Child:
    """A process, what becomes readable when it ends, and what it last said on stderr (an anonymous file)."""

    process: subprocess.Popen[bytes]
    end_fd: int
    stderr_fd: int
    fds: list[int]

    def last_words(self) -> str:
        size = os.fstat(self.stderr_fd).st_size
        text = os.pread(self.stderr_fd, 8000, max(0, size - 8000)).decode(errors="replace").strip()
        status = self.process.returncode
        return text or f"(it said nothing; exit status {status})"

    def close(self) -> None:
        for fd in [self.end_fd, self.stderr_fd, *self.fds]:
            os.close(fd)


@contextmanager
def starting(what: str) -> Iterator[ExitStack]:
    """A stack of what to undo where `what` cannot be started, for which it raises StartError."""
    with ExitStack() as undo:
        try:
            yield undo
        except OSError as error:
            raise StartError(
                f"{what} cannot be started: {error.strerror}; "
                "use fewer --workers, or allow more files and processes (ulimit -n, ulimit -u)"
            ) from None
        undo.pop_all()


@functools.cache
def has_pidfd() -> bool:
    """Whether this kernel tells of a death by pidfd (Linux 5.3, and permitted)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def start_child(module: str, spec: dict[str, Any], fds: list[int], threads: int) -> Child:
    """Start `python -m module` with `spec` in a file, inheriting `fds`; it dies with this process.

    Raises StartError where the machine has no room for it.
    """
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    )
    with starting(f"a process of {module}") as undo, ExitStack() as theirs:
        spec_fd = nameless_file("shmzero-spec")
        theirs.callback(os.close, spec_fd)
        os.write(spec_fd, json.dumps(spec | {"parent_pid": os.getpid()}).encode())
        os.lseek(spec_fd, 0, os.SEEK_SET)
        stderr_fd = nameless_file("shmzero-stderr")
        undo.callback(os.close, stderr_fd)
        inherited = [spec_fd, *fds]
        end_fd = -1
        if not has_pidfd():  # a pipe that the child holds the other end of, until it ends
            end_fd, life = os.pipe()
            undo.callback(os.close, end_fd)
            theirs.callback(os.close, life)
            inherited.append(life)
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--spec-fd", str(spec_fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=inherited,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's alone
        )
        undo.callback(process.wait)
        undo.callback(process.kill)
        if end_fd < 0:
            end_fd = os.pidfd_open(process.pid)
    return Child(process, end_fd, stderr_fd, [])


def child_main(run_spec: Any) -> None:
    """Entry of a child process: reads its spec from an inherited file, dies with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parser = argparse.ArgumentParser(description="Started by shmzero itself.")
    parser.add_argument("--spec-fd", type=int, required=True)
    with os.fdopen(parser.parse_args().spec_fd) as pipe:
        spec = json.load(pipe)
    _core.die_with_parent(spec["parent_pid"])
    try:
        code = run_spec(spec)
    except Exception:  # the entry point: the traceback is what the parent shows
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # threads of a compiler must not hold it up
