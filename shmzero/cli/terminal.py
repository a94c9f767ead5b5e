"""A live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


class HasLine(Protocol):
    """A state that can be shown."""

    def line(self) -> str: ...


class Terminal:
    """A live picture on a terminal, a plain line now and then elsewhere; all on standard error."""

    PLAIN_S = 5.0

    def __init__(self, picture: Callable[[Any], Any] | None = None) -> None:
        """`picture`: what rich shows of a state on a terminal (default: its line)."""
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._plain_at = time.monotonic()
        self._picture = picture

    def __enter__(self) -> Terminal:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def show(self, progress: HasLine) -> None:
        from rich.text import Text

        if self._live:
            line = Text(progress.line(), overflow="ellipsis", no_wrap=True)
            self._live.update(self._picture(progress) if self._picture else line, refresh=True)
        elif time.monotonic() - self._plain_at >= self.PLAIN_S:
            self.say(progress.line())
            self._plain_at = time.monotonic()
