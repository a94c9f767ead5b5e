"""A run's metrics: the lines of its file, and the same for TensorBoard, which needs tensorboard."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shmzero.errors import ConfigError, RecordError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file in order; one that a kill cut off is left out. Raises ConfigError, RecordError."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no {path}; give the folder of a training run") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None
    lines = []
    for text in data.splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # no JSON, or no text
            continue
    return lines


class Board:
    """A run's metrics for TensorBoard. This needs tensorboard: pip install tensorboard."""

    @staticmethod
    def check(folder: Path) -> None:
        """Raises ConfigError where tensorboard is missing, or cannot write to such a folder."""
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("tensorboard is set and not installed; install it with: pip install tensorboard")
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"tensorboard is set with the folder {folder}; allowed: a folder whose path is UTF-8"
            ) from None

    def __init__(self, folder: Path) -> None:
        self.check(folder)
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def add(self, line: dict[str, Any], steps: int) -> None:
        """Write every number of a line of the metrics, by its path of names, at the learner's step."""
        for name, value in numbers(line):
            self._writer.add_scalar(name, value, steps)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def numbers(line: dict[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """(path/of/names, value) of every number in a line; a match goes by its opponent and mode."""
    if path == "match":
        path += f"/{Path(line['opponent']).name}/{line['mode']}"
    for name, value in line.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{path}/{name}" if path else name)
        elif isinstance(value, (int, float)):
            yield (f"{path}/{name}" if path else name), float(value)
