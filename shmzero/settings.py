"""Checks of settings, and settings as TOML. Knows no setting by name but those that may be numbers."""

from __future__ import annotations

import functools
import json
import math
import numbers
import operator
import os
import tomllib
import types
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

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


@functools.cache
def _types(kind: Hashable) -> dict[str, tuple[type, ...]]:
    """The types that each field takes; a Literal's is that of its values."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
        found[name] = tuple(str if get_origin(part) is Literal else part for part in parts)
    return found


def check_types(settings: Any) -> None:
    """Refuse values of another type, as a TOML file can hold them. An int will do for a float, a bool for no number.

    Numbers and bools of numpy become Python's.
    """
    for name, allowed in _types(settings.__class__).items():
        value = plain(getattr(settings, name))
        object.__setattr__(settings, name, value)  # the class is frozen, and this is its beginning
        fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in allowed):
            words = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
            raise ConfigError(f"{name} is {value!r}; allowed: {words}")


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


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
