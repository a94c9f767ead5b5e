"""One child process: it starts with a spec and inherited files, and ends when its parent does.

It does not know what the child does. Read next: line_socket.py (how both talk), watch.py (who is stuck).
"""

from __future__ import annotations

import argparse
import errno
import functools
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shmzero import _core
from shmzero.errors import StartError
from shmzero.processes.messages import Kinds, M, Message, encode
from shmzero.processes.watch import Watch
from shmzero.shm.names import nameless_file


class Child:
    """A process that this one has started: how it is watched, ended and cleared away."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], end_fd: int, stderr_fd: int, held: ExitStack
    ) -> None:
        """`held` closes the descriptors and all else that this process holds for the child."""
        self.name = name
        self.process = process
        self.end_fd = end_fd
        """Becomes readable when the process ends."""
        self.watch = Watch()
        self.stuck = ""
        """What it did not do for too long, for which it was killed, or an empty text."""
        self._stderr_fd = stderr_fd
        self._held = held

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> int:
        """The exit status of a process that has been waited for; of one that a signal ended the signal, negated."""
        return self.process.returncode

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """What it last wrote to standard error, or else its exit status."""
        size = os.fstat(self._stderr_fd).st_size
        text = os.pread(self._stderr_fd, 8000, max(0, size - 8000)).decode(errors="replace").strip()
        return text or f"(it said nothing; exit status {self.status})"

    def end_stuck(self, why: str | None) -> str | None:
        """Kill the process for what it has not done, if there is such a thing; returns a line about it, once."""
        if why is None or self.stuck:
            return None
        self.stuck = why
        self.watch = Watch()
        self.process.kill()
        return f"{self.name} {why}"

    def kill(self) -> None:
        """End the process at once and close everything."""
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Close what this process holds for the child."""
        self._held.close()


@contextmanager
def starting(what: str) -> Iterator[ExitStack]:
    """A stack of what to undo where `what` cannot be started, for which it raises StartError.

    Pass the stack to `start_child`, and it becomes what the child's handle closes.
    """
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


def start_child(name: str, module: str, spec: Message, fds: Sequence[int], threads: int, held: ExitStack) -> Child:
    """Start `python -m module` with `spec` in a file, inheriting `fds`; it dies with this process.

    `name` is the child's in lines for people. What `held` closes becomes the child's, and is closed with it.
    Raises OSError where the machine has no room for it: see `starting`.
    """
    environment = dict(os.environ)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[variable] = str(threads)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    )
    with ExitStack() as undo, ExitStack() as theirs:
        spec_fd = nameless_file("shmzero-spec")
        theirs.callback(os.close, spec_fd)
        os.write(spec_fd, encode(spec))
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
            [sys.executable, "-m", module, "--spec-fd", str(spec_fd), "--parent-pid", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=inherited,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's alone
        )
        if end_fd < 0:
            try:
                end_fd = os.pidfd_open(process.pid)
            except OSError:
                process.kill()
                process.wait()
                raise
            undo.callback(os.close, end_fd)
        held.push(undo.pop_all())
    return Child(name, process, end_fd, stderr_fd, held.pop_all())


def child_main(kind: type[M], run: Callable[[M], int]) -> None:
    """Entry of a child process: reads its spec from an inherited file, runs, and dies with its parent.

    `run` gets the spec and returns the exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parser = argparse.ArgumentParser(description="Started by shmzero itself.")
    parser.add_argument("--spec-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    _core.die_with_parent(arguments.parent_pid)
    try:
        with os.fdopen(arguments.spec_fd, "rb") as file:
            spec = Kinds(kind).decode(file.read())
        code = run(spec)
    except Exception:  # the entry point: the traceback is what the parent shows
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # threads of a compiler must not hold it up
