"""shmzero: self-play for the card game Blob (Oh Hell) over shared memory. Imports no torch."""

from shmzero._core import Game, Round, Rules
from shmzero.config import NetConfig, SearchConfig
from shmzero.errors import ConfigError, IllegalAction, ShmzeroError
from shmzero.search import SearchResult, play_rounds, search
from shmzero.version import VERSION as __version__

__all__ = [
    "ConfigError",
    "Game",
    "IllegalAction",
    "NetConfig",
    "Round",
    "Rules",
    "SearchConfig",
    "SearchResult",
    "ShmzeroError",
    "__version__",
    "play_rounds",
    "search",
]

