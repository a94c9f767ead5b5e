"""shmzero: self-play for the card game Blob (Oh Hell) over shared memory.

What it offers is loaded when it is first asked for. Imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmzero._core import Game, Round, Rules
    from shmzero.errors import ConfigError, IllegalAction, ModelFailed, ServerGone, ShmzeroError
    from shmzero.mcts.config import SearchConfig
    from shmzero.mcts.play import play_rounds
    from shmzero.mcts.search import SearchResult, search
    from shmzero.nets.config import NetConfig
    from shmzero.runs.network import load_network
    from shmzero.service.batched import BatchedEvaluator
    from shmzero.service.client import Client
    from shmzero.service.server import InferenceServer
    from shmzero.version import VERSION as __version__

__all__ = [
    "BatchedEvaluator",
    "Client",
    "ConfigError",
    "Game",
    "IllegalAction",
    "InferenceServer",
    "ModelFailed",
    "NetConfig",
    "Round",
    "Rules",
    "SearchConfig",
    "SearchResult",
    "ServerGone",
    "ShmzeroError",
    "__version__",
    "load_network",
    "play_rounds",
    "search",
]

_HOMES = {
    "_core": "Game Round Rules",
    "errors": "ConfigError IllegalAction ModelFailed ServerGone ShmzeroError",
    "mcts.config": "SearchConfig",
    "mcts.play": "play_rounds",
    "mcts.search": "SearchResult search",
    "nets.config": "NetConfig",
    "runs.network": "load_network",
    "service.batched": "BatchedEvaluator",
    "service.client": "Client",
    "service.server": "InferenceServer",
}
"""Where each name lives."""


def __getattr__(name: str) -> Any:
    """Load what is asked for, once."""
    if name == "__version__":
        value = importlib.import_module("shmzero.version").VERSION
    else:
        home = next((module for module, names in _HOMES.items() if name in names.split()), None)
        if home is None:
            raise AttributeError(f"module 'shmzero' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"shmzero.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def is_command() -> bool:
    """Whether this process is `python -m shmzero...` and no program that merely imports shmzero, which keeps its
    signals and files as they are."""
    return any(
        flag == "-m" and module.partition(".")[0] == "shmzero"
        for flag, module in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    )


if is_command():
    importlib.import_module("shmzero.cli.interrupts")  # first: it catches a Ctrl-C while the rest is loaded
