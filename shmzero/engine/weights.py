"""Weights on their way to the inference processes."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from shmzero.errors import ConfigError
from shmzero.files import digest_of
from shmzero.shm.names import nameless_file


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint by value: for an engine that lives where the file is not."""

    path: str
    """The file's path where it came from, for people."""
    data: bytes

    @classmethod
    def read(cls, path: Path | str) -> CheckpointFile:
        """Raises OSError."""
        return cls(str(path), Path(path).read_bytes())


Source = Path | str | CheckpointFile
"""Where weights come from: a file, or what was in one."""


@dataclass
class Weights:
    """A version of the weights as this process keeps it: a copy, whatever becomes of the file."""

    version: int
    path: str | None
    """The path of the checkpoint that was copied, or None where the network is initialised from the seed."""
    fd: int = -1
    refused: bool = False

    @classmethod
    def copied(cls, version: int, source: Source) -> Weights:
        """A copy of a checkpoint file. Raises OSError."""
        path = source.path if isinstance(source, CheckpointFile) else str(source)
        with io.BytesIO(source.data) if isinstance(source, CheckpointFile) else open(path, "rb") as file:
            fd = nameless_file("shmzero-weights")
            with open(fd, "wb", closefd=False) as copy:
                shutil.copyfileobj(file, copy)
        return cls(version, path, fd)

    @property
    def name(self) -> str | None:
        """Where the children read it: the copy, or the file itself where it was not copied."""
        return self.path if self.fd < 0 else f"/proc/{os.getpid()}/fd/{self.fd}"

    def with_path(self, text: str) -> str:
        """A message of a process, in which the checkpoint's own path stands in place of the copy's."""
        return text if self.name is None or self.path is None else text.replace(self.name, self.path)

    def digest(self) -> str | None:
        """SHA-256 of the file."""
        return None if self.name is None else digest_of(self.name)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class WeightsVersions:
    """The weights that are served, those published since, and those that a process may be about to read."""

    def __init__(self, version: int, checkpoint: Source | None) -> None:
        """Begin with a checkpoint as `version`, or without one with what is initialised from the seed.

        Raises ConfigError for a checkpoint that cannot be read.
        """
        try:
            self.served = Weights.copied(version, checkpoint) if checkpoint else Weights(version, None)
        except OSError as error:
            raise ConfigError(f"checkpoint {checkpoint} cannot be read: {error.strerror}") from None
        self.newest = version
        """The version that was published last, be it taken, refused or under way."""
        self._known = {version: self.served}

    def publish(self, source: Source, version: int | None) -> Weights:
        """Copy a checkpoint; it gets the next version, or `version` where that is higher. Raises OSError."""
        wanted = self.newest + 1 if version is None else max(version, self.newest + 1)
        weights = Weights.copied(wanted, source)
        self.newest = wanted
        self._known[wanted] = weights
        return weights

    @property
    def offered(self) -> Weights | None:
        """Weights newer than those served that nobody has refused; None where there are none."""
        newest = self._known[max(self._known)]
        return None if newest is self.served or newest.refused else newest

    def set_taken(self, version: int) -> None:
        """Note that a process serves a version."""
        if version in self._known and version > self.served.version:
            self.served = self._known[version]

    def set_refused(self, version: int) -> None:
        """Note that a process cannot serve a version."""
        if version in self._known and version > self.served.version:
            self._known[version].refused = True

    def close_older(self, oldest: int) -> None:
        """Close all versions before `oldest` that are not served: no process is about to read them."""
        for version in [known for known in self._known if known < min(oldest, self.served.version)]:
            self._known.pop(version).close()

    def with_paths(self, text: str) -> str:
        """A message of a process, in which the checkpoints' own paths stand in place of the copies'."""
        for weights in self._known.values():
            text = weights.with_path(text)
        return text

    def close(self) -> None:
        for weights in self._known.values():
            weights.close()
