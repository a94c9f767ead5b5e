"""Fixtures that several test files share."""

import signal
from collections.abc import Iterator

import pytest

from tests.support.compiled import cache
from tests.support.processes import kill_started
from tests.support.services import client, name, rng, server

__all__ = ["cache", "client", "name", "processes", "rng", "server", "signals"]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command's main() takes the signals over; give them back."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def processes() -> Iterator[None]:
    """None outlives its test, also where that fails."""
    yield
    kill_started()
