"""Fixtures that several test files share, and which tests run: those marked `slow` with --slow alone.

A test is slow as well where it needs what takes long to make.
"""

import signal
from collections.abc import Iterator

import pytest

from tests.support.compiled import cache
from tests.support.processes import kill_started
from tests.support.services import client, name, rng, server

__all__ = ["cache", "client", "name", "processes", "rng", "server", "signals"]

SLOW_FIXTURES = {"cache", "fitted", "trained"}
"""A compiled network, a network fitted to searches, a training run."""
LEFT_OUT = pytest.StashKey[int]()
"""How many slow tests this session does not run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow as well")


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, unless --slow, -m or the very name of a test asks for them."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if config.getoption("--slow") or config.getoption("-m") or any("::" in word for word in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.stash[LEFT_OUT] = len(slow)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line."""
    left_out = config.stash.get(LEFT_OUT, 0)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if left_out and reporter is not None:
        reporter.write_line(f"slow tests left out: {left_out}; with them: env/run pytest --slow")


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
