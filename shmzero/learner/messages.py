"""What the learner and its parent say to each other. Records go down another socket: see feed.py.

Commands: training/learner_handle.py sends them, process.py (`run`) acts on them.
Events: process.py sends them, training/learner_handle.py receives them, training/learning.py and training/run.py act
on them. How to add one is in CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shmzero.learner.config import LearnerConfig
from shmzero.processes.messages import Kinds, Message


@dataclass(frozen=True)
class LearnerSpec(Message):
    """How the process is to be started."""

    control_fd: int
    record_fd: int
    pulse_fd: int
    folder: Path
    config: LearnerConfig
    device: str
    threads: int
    progress: float
    """Share of the run that is done, 0 to 1."""
    version: int
    """Of the weights that self-play has."""
    refill: bool
    """Whether to take up the newest records of the folder first."""


# --- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunProgress(Message):
    """Where the run stands."""

    progress: float
    """Share of the run that is done, 0 to 1."""
    version: int
    """Of the weights that self-play has."""


@dataclass(frozen=True)
class Finish(Message):
    """Save the last state and end."""

    progress: float
    version: int
    to_the_end: bool
    """Whether to learn from all records first."""


Command = RunProgress | Finish
COMMANDS: Kinds[Command] = Kinds(RunProgress, Finish)


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SettingsRefused(Message):
    """The settings cannot be used: the process ends."""

    message: str


@dataclass(frozen=True)
class FolderFailed(Message):
    """The run folder cannot be read or written: the process ends."""

    message: str


@dataclass(frozen=True)
class Ready(Message):
    """The learner has taken up its state."""

    steps: int
    rows: int
    """Rows in its buffer."""


@dataclass(frozen=True)
class PauseWanted(Message):
    """Self-play is too far ahead and shall be held back, or may go on again."""

    on: bool


@dataclass(frozen=True)
class Learned(Message):
    """How the learning goes: means over the steps since the last such message."""

    steps: int
    rows: int
    skipped: int
    steps_per_s: float
    replay_ratio: float
    replay_age_versions: float
    learner_waits: float
    """Share of the time in which it had nothing to do."""
    learning_rate: float
    means: dict[str, float]
    """By the names of learner/algorithm.py, METRICS."""


@dataclass(frozen=True)
class WeightsPublished(Message):
    """Weights for self-play lie in the run folder."""

    path: Path
    version: int


@dataclass(frozen=True)
class CheckpointSaved(Message):
    """A checkpoint that stays lies in the run folder, and so does the state to go on from."""

    steps: int


@dataclass(frozen=True)
class Finished(Message):
    """The last state is saved: the process ends."""

    steps: int


Failure = SettingsRefused | FolderFailed
Event = Failure | Ready | PauseWanted | Learned | WeightsPublished | CheckpointSaved | Finished
EVENTS: Kinds[Event] = Kinds(
    SettingsRefused, FolderFailed, Ready, PauseWanted, Learned, WeightsPublished, CheckpointSaved, Finished
)
