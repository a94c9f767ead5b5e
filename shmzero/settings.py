"""Settings that check themselves, other checks of what users give, and settings as TOML.

Knows no setting by name but those that may be numbers. Read next: engine/config.py, training/config.py.
"""

from __future__ import annotations

import functools
import json
import math
import numbers
import operator
import os
import tomllib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from shmzero.errors import ConfigError


def plain(value: Any) -> Any:
    """A bool or number of numpy, or whatever else has `__index__`, as Python's own; anything else as it is."""
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, (bool, float)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a number from low to high."""
    value = plain(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{name} is {value!r}; allowed: {low:g} to {high:g}")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raises ConfigError unless `value` is a whole number, of whatever type, from low to high."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; allowed: whole numbers {low} to {high}")


def seconds(name: str, value: float | None) -> float:
    """A time-out: None is without end. Raises ConfigError for what is no number."""
    if type(value) is float and value == value:
        return value
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ConfigError(f"{name} is {value!r}; allowed: a number of seconds, or None to wait without end")
    return float(value)


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


# --- settings that check themselves -----------------------------------------------------------------


def setting(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of a Settings class: its default and, for a number, the least and the most that is allowed."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Kind:
    """What a setting's type annotation says."""

    types: tuple[type, ...]
    """The types that its values may have; those of a Literal are strings."""
    choices: tuple[str, ...]
    """The values that it may have, where the annotation lists them."""

    @property
    def optional(self) -> bool:
        """Whether None is allowed."""
        return type(None) in self.types


@functools.cache
def kinds(settings: Hashable) -> dict[str, Kind]:
    """What the annotations of a Settings class say, by field."""
    found = {}
    for name, hint in get_type_hints(settings).items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [value for part in parts if get_origin(part) is Literal for value in get_args(part)]
        found[name] = Kind(tuple(str if get_origin(part) is Literal else part for part in parts), tuple(choices))
    return found


@dataclass(frozen=True)
class Settings:
    """A dataclass of settings. Making one raises ConfigError for a value that its declaration does not allow.

    A setting is declared once: its annotation has the types, or in a Literal the values, that it may have, `setting`
    the range of a number, and the docstring below it says what it is. Numbers and bools of numpy become Python's.
    """

    def __post_init__(self) -> None:
        own: Any = self.__class__
        for one in fields(self):
            kind = kinds(own)[one.name]
            value = plain(getattr(self, one.name))
            object.__setattr__(self, one.name, value)  # the class is frozen, and this is its beginning
            fits = isinstance(value, kind.types) or (float in kind.types and isinstance(value, int))
            if not fits or (isinstance(value, bool) and bool not in kind.types):
                words = " or ".join(known.__name__ for known in kind.types if known is not type(None))
                raise ConfigError(f"{one.name} is {value!r}; allowed: {words}")
            if value is None:
                continue
            if kind.choices:
                check_choice(one.name, value, kind.choices)
            if one.metadata.get("low") is not None:
                check_number(one.name, value, one.metadata["low"], one.metadata["high"])
        self.check()

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""


# --- TOML -------------------------------------------------------------------------------------------


def read_settings(path: Path, kind: type[Any]) -> dict[str, Any]:
    """What a TOML file sets of the fields of dataclass `kind`. Raises ConfigError for anything else."""
    try:
        table = tomllib.loads(os.fsdecode(path.read_bytes()))  # paths in it may be no text
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from None
    known = {field.name for field in fields(kind)}
    settings = {key.replace("-", "_"): value for key, value in table.items()}
    for key in settings:
        if key not in known:
            raise ConfigError(f"--config {path}: unknown setting {key!r}; known: {', '.join(sorted(known))}")
    for key in ("players", "cards", "dealer"):
        if isinstance(settings.get(key), int):
            settings[key] = str(settings[key])
    return settings


def to_toml(settings: Mapping[str, Any]) -> str:
    """Flat settings as TOML; None is left out. The bytes of a path that is no text are those of os.fsencode."""

    def literal(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (int, float)):
            return repr(value)
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's

    return "".join(f"{key} = {literal(value)}\n" for key, value in settings.items() if value is not None)
