"""Settings that check themselves, other checks of what users give, and settings as TOML.

Knows no setting by name but those that may be numbers. Read next: engine/config.py, training/config.py.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import math
import numbers
import operator
import os
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

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


def setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    name: str | None = None,
    free: bool = False,
    usual: bool = False,
) -> Any:
    """A field of a Settings class.

    low, high: the least and the most that a number may be. name: what flags and files call it, where that is not
    the field's name. free: it may change when a run folder goes on. usual: the short help shows it.
    """
    about = {"low": low, "high": high, "name": name, "free": free, "usual": usual}
    return field(default=default, metadata=about)


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

    @property
    def group(self) -> type[Settings] | None:
        """The class of a group of settings, or None for a single one."""
        only = self.types[0]
        return only if isinstance(only, type) and issubclass(only, Settings) else None


def kinds(settings: type[Settings]) -> dict[str, Kind]:
    """What the annotations of a Settings class say, by field."""
    own: Any = settings
    return _kinds(own)


@functools.cache
def _kinds(settings: Hashable) -> dict[str, Kind]:
    found = {}
    for name, hint in get_type_hints(settings).items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [value for part in parts if get_origin(part) is Literal for value in get_args(part)]
        found[name] = Kind(tuple(str if get_origin(part) is Literal else part for part in parts), tuple(choices))
    return found


@dataclass(frozen=True)
class Declaration:
    """Where one setting is declared, among the groups of a Settings class."""

    name: str
    """What flags and files call it, with _ for -."""
    path: tuple[str, ...]
    """The fields that lead to it."""
    owner: type[Settings]
    """The class that holds it."""
    kind: Kind
    free: bool
    usual: bool


def declarations(settings: type[Settings]) -> dict[str, Declaration]:
    """Every setting of a Settings class and its groups, by the name that flags and files use."""
    own: Any = settings
    return _declarations(own)


@functools.cache
def _declarations(settings: Hashable) -> dict[str, Declaration]:
    found: dict[str, Declaration] = {}
    owner: Any = settings
    for one in fields(owner):
        kind = kinds(owner)[one.name]
        if kind.group is None:
            name = one.metadata.get("name") or one.name
            free, usual = (bool(one.metadata.get(word)) for word in ("free", "usual"))
            new = {name: Declaration(name, (one.name,), owner, kind, free, usual)}
        else:
            inner = declarations(kind.group)
            new = {name: replace(below, path=(one.name, *below.path)) for name, below in inner.items()}
        assert not new.keys() & found.keys(), f"{owner.__name__} declares {new.keys() & found.keys()} twice"
        found |= new
    return found


@dataclass(frozen=True)
class Settings:
    """A dataclass of settings. Making one raises ConfigError for a value that its declaration does not allow.

    A setting is declared once: its annotation has the types, or in a Literal the values, that it may have, `setting`
    the range of a number, and the docstring below it says what it is. A field may be a group, itself a Settings
    class, which others share; flags, files and `of` name its settings without the group. Numbers and bools of numpy
    become Python's.
    """

    title: ClassVar[str] = "run"
    """What the help calls the group."""
    old_names: ClassVar[Mapping[str, str]] = {}
    """Names of settings in earlier versions, with those of now. Flags, files and run folders may still use them."""

    def __post_init__(self) -> None:
        for one in fields(self):
            kind, name = kinds(self.__class__)[one.name], self.called(one)
            value = plain(getattr(self, one.name))
            object.__setattr__(self, one.name, value)  # the class is frozen, and this is its beginning
            fits = isinstance(value, kind.types) or (float in kind.types and isinstance(value, int))
            if not fits or (isinstance(value, bool) and bool not in kind.types):
                words = " or ".join(known.__name__ for known in kind.types if known is not type(None))
                raise ConfigError(f"{name} is {value!r}; allowed: {words}")
            if value is None:
                continue
            if kind.choices:
                check_choice(name, value, kind.choices)
            if one.metadata.get("low") is not None:
                check_number(name, value, one.metadata["low"], one.metadata["high"])
        self.check()

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""

    @classmethod
    def called(cls, one: Field[Any]) -> str:
        """What an error calls a field."""
        return one.metadata.get("name") or one.name

    @classmethod
    def of(cls, **flat: Any) -> Self:
        """Settings out of their flat names; the others keep their defaults. Raises ConfigError."""
        return cls().but(**flat)

    def but(self, **flat: Any) -> Self:
        """These settings with some others, by their flat names. Raises ConfigError."""
        known = declarations(self.__class__)
        for name in flat:
            if name not in known:
                raise ConfigError(f"unknown setting {name!r}; known: {', '.join(sorted(known))}")
        return _changed(self, {known[name].path: value for name, value in flat.items()})

    def flat(self) -> dict[str, Any]:
        """Every setting by its flat name; what `of` takes."""
        return {name: functools.reduce(getattr, one.path, self) for name, one in declarations(self.__class__).items()}

    def part(self, kind: type[Settings]) -> dict[str, Any]:
        """The fields that a base class of this one has; what makes another class that shares it."""
        return {one.name: getattr(self, one.name) for one in fields(kind)}


AnySettings = TypeVar("AnySettings", bound=Settings)


def _changed(settings: AnySettings, changes: Mapping[tuple[str, ...], Any]) -> AnySettings:
    """`settings` with other values at some paths."""
    own = {path[0]: value for path, value in changes.items() if len(path) == 1}
    for group in {path[0] for path in changes if len(path) > 1}:
        below = {path[1:]: value for path, value in changes.items() if path[0] == group}
        own[group] = _changed(getattr(settings, group), below)
    return replace(settings, **own)


def descriptions(settings: type[Settings]) -> dict[str, str]:
    """The docstrings below the fields of a Settings class and of its bases, by field, each on one line."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if not issubclass(kind, Settings):
            continue
        [body] = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
        for statement, below in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = (
                    below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                )
                found[statement.target.id] = " ".join(str(text).split())
    return found


def renamed(names: Mapping[str, Any], kind: type[Settings]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """`names` under the names of now, and which of them were old, each with its new name."""
    old = kind.old_names
    new = {old.get(name, name): value for name, value in names.items()}
    return new, [(name, old[name]) for name in names if name in old]


# --- TOML -------------------------------------------------------------------------------------------


def read_settings(path: Path, kind: type[Settings], say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """What a TOML file sets of the settings of `kind`, by flat name; keys may have - for _.

    `say` gets a line for each key that an earlier version used. Raises ConfigError for anything else.
    """
    try:
        table = tomllib.loads(os.fsdecode(path.read_bytes()))  # paths in it may be no text
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from None
    known: dict[str, Declaration] = declarations(kind)
    settings, old = renamed({key.replace("-", "_"): value for key, value in table.items()}, kind)
    for name, new in old:
        say(f"note: {name} in {path} is called {new} now")
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"--config {path}: unknown setting {key!r}; known: {', '.join(sorted(known))}")
        if key in ("players", "cards", "dealer") and isinstance(value, int):
            settings[key] = str(value)
        elif Path in known[key].kind.types and isinstance(value, str):
            settings[key] = Path(value)
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
