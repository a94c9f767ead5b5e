"""Weights on their way to the inference processes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from shmzero.files import digest_of
from shmzero.shm.names import nameless_file


@dataclass
class Weights:
    """A version of the weights as this process keeps it: a copy, whatever becomes of the file."""

    version: int
    path: str | None
    """The path of the checkpoint that was copied, or None where the network is initialised from the seed."""
    fd: int = -1
    refused: bool = False

    @classmethod
    def copied(cls, version: int, path: Path | str) -> Weights:
        """A copy of a checkpoint file. Raises OSError."""
        with open(path, "rb") as file:
            fd = nameless_file("shmzero-weights")
            with open(fd, "wb", closefd=False) as copy:
                shutil.copyfileobj(file, copy)
        return cls(version, str(path), fd)

    @property
    def name(self) -> str | None:
        """Where the children read the copy."""
        return None if self.path is None else f"/proc/{os.getpid()}/fd/{self.fd}"

    def digest(self) -> str | None:
        """SHA-256 of the file."""
        return None if self.name is None else digest_of(self.name)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
