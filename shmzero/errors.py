"""What can go wrong, by name. Every message says what was attempted, the value, and what is allowed."""

from __future__ import annotations


class ShmzeroError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(ShmzeroError, ValueError):
    """A setting, a flag, a checkpoint or a run folder that cannot be used; exit code 2."""


class FolderBusy(ConfigError):
    """A run folder that another process writes to."""


class IllegalAction(ShmzeroError, ValueError):
    """An action that the rules do not allow now."""


class SegmentError(ShmzeroError):
    """Shared memory cannot be had or mapped; exit code 1."""


class SegmentCorrupt(SegmentError):
    """Shared memory holds something that this version did not write."""


class RecordError(ShmzeroError):
    """The record file cannot be read or written; exit code 1."""


class StartError(ShmzeroError):
    """A child process cannot be started; exit code 1."""


class WorkerDied(ShmzeroError):
    """A child process keeps dying; carries the child's own last words."""


class MessageError(ShmzeroError):
    """A message of a process of another version; exit code 1."""


class ServerGone(ShmzeroError, RuntimeError):
    """The inference process is not there any more."""


class RequestLost(ServerGone):
    """A request's place in shared memory was taken away while its process lives: ask again."""


class ModelFailed(ShmzeroError, RuntimeError):
    """The network raised while serving; carries its message."""


class NotCompiled(ShmzeroError):
    """The network's compiled form cannot be kept, made or loaded; it is served eagerly, which is slower."""
