"""shmzero: self-play for the card game Blob (Oh Hell) over shared memory. Imports no torch."""

import shmzero.command  # noqa: F401  first: it catches a Ctrl-C while the rest is loaded
from shmzero._core import Game, Round, Rules
from shmzero.client import Client
from shmzero.config import NetConfig, SearchConfig
from shmzero.errors import ConfigError, IllegalAction, ModelFailed, ServerGone, ShmzeroError
from shmzero.evaluators import load_network
from shmzero.search import SearchResult, play_rounds, search
from shmzero.server import BatchedEvaluator, InferenceServer
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

