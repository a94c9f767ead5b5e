"""Waits until children have written something, or have ended."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from shmzero.processes.child import Child


@dataclass(frozen=True)
class _Watched:
    action: Callable[[], None]
    is_end: bool


class ChildSelector:
    """Calls what reads from children that have written, and then what clears away those that have ended."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._selector = selectors.DefaultSelector()

    def add(self, fd: int, read: Callable[[], None]) -> None:
        """Call `read` whenever there is something to read from `fd`."""
        self._selector.register(fd, selectors.EVENT_READ, _Watched(read, is_end=False))

    def add_end(self, child: Child, reap: Callable[[], None]) -> None:
        """Call `reap` when the process has ended and been waited for."""

        def ended() -> None:
            child.process.wait()
            reap()

        self._selector.register(child.end_fd, selectors.EVENT_READ, _Watched(ended, is_end=True))

    def remove(self, fd: int) -> None:
        """Watch a descriptor no longer, if it is watched. To be called before it is closed."""
        with suppress(KeyError):
            self._selector.unregister(fd)

    def wait(self, timeout_s: float) -> None:
        """Wait at most so long for anything to happen, and act on all that has. Raises what the actions raise."""
        watched: list[_Watched] = [key.data for key, _ in self._selector.select(timeout_s)]
        for one in sorted(watched, key=lambda one: one.is_end):
            one.action()

    def close(self) -> None:
        self._selector.close()
