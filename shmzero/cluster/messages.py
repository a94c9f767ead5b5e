"""What the driver and the engine of a node say to each other, by Ray's calls.

Both are of one build, which the greeting makes sure of; the classes travel as Ray pickles them.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shmzero import _core
from shmzero.engine.config import SelfPlayConfig
from shmzero.errors import ShmzeroError
from shmzero.version import VERSION


@dataclass(frozen=True)
class Build:
    """What has to be the same on every node: rules, features, network sizes and records follow from it."""

    version: str
    """Of the package."""
    sources: str
    """The start of a SHA-256 over the package's Python sources."""
    features: int
    """The version of the features of a position."""
    records: int
    """The version of the records of a round."""

    @classmethod
    def here(cls) -> Build:
        """The build of this process."""
        return cls(VERSION, digest_of_sources(), _core.FEATURE_VERSION, _core.RECORD_VERSION)

    def __str__(self) -> str:
        return f"shmzero {self.version}, sources {self.sources}, features {self.features}, records {self.records}"


@functools.cache
def digest_of_sources() -> str:
    """The start of a SHA-256 over the names and contents of the package's Python sources."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Greeting:
    """What a node says first."""

    build: str
    """A Build, in words: a node of another one may have another class."""
    host: str
    engine: str
    """A name that no other engine has: one that Ray started again after a death has another."""


@dataclass(frozen=True)
class Setup:
    """What a node is to play."""

    config: SelfPlayConfig
    """The settings as they were given: each node makes of them what its machine has room for."""
    num_cpus: int
    """Cores that the engine may use."""
    num_gpus: int
    num_units: int
    """How many units all nodes have to play: no node needs more lanes."""
    version: int
    """The version of the checkpoint that comes with it."""


class Part(NamedTuple):
    """Records of rounds of one unit that were finished."""

    unit: int
    first: int
    """The number of the first of these rounds within the unit: 0, but for games."""
    is_last: bool
    """Whether the unit is finished with them."""
    records: list[bytes]


@dataclass(frozen=True)
class Step:
    """Asks a node to play on for a moment."""

    engine: str
    """The engine that this is for."""
    units: dict[int, list[bytes]]
    """Further units, each with the records of the rounds of it that are finished."""
    paused: bool
    """Whether no further units are to be begun."""
    version: int = 0
    """The version of the checkpoint that comes with it, if one does."""


@dataclass(frozen=True)
class Status:
    """How a node is."""

    notices: list[str] = field(default_factory=list)
    """What its fleet says of its sizes."""
    served: int = 0
    """The version of the newest weights that its inference processes have taken."""
    ready: bool = False
    waits: bool = False
    num_workers: int = 0
    num_servers: int = 0
    restarts: int = 0
    """Processes of its fleet that died and were replaced."""
    wanted: int = 0
    """Units that it would like to have at once."""
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a node has finished since its last answer, and how it is."""

    engine: str
    parts: list[Part]
    events: list[str]
    """Lines for people."""
    status: Status
    error: ShmzeroError | None = None
    """What ended the fleet: an error of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Parts travel as plain tuples: Ray's pickler calls Python functions for each object that has a class."""
        return _answer, (self.engine, [tuple(part) for part in self.parts], self.events, self.status, self.error)


def _answer(engine: str, parts: list[tuple[Any, ...]], *rest: Any) -> Answer:
    """An Answer that has travelled."""
    return Answer(engine, [Part(*part) for part in parts], *rest)


CHUNK_BYTES = 90 * 1024
"""Records in an answer at most, but for one unit that has more: Ray returns up to 100 KiB without its object store."""
