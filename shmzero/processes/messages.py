"""What processes say to each other: frozen dataclasses, each of one kind, one JSON object on the way.

A receiver says which kinds it takes. What is of another kind, or has other fields, is refused with an error that names
it: both ends would not be of one version. Each room with a process has its messages in its own messages.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from shmzero.errors import MessageError


class Message:
    """The base of all messages: a subclass is a frozen dataclass, and its kind is the class's name."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__


M = TypeVar("M", bound=Message)
"""The messages that one end receives: one class, or a union of several."""


def encode(message: Message) -> bytes:
    """A message as one line of JSON. A field may hold what JSON has, paths and dataclasses."""
    assert dataclasses.is_dataclass(message) and not isinstance(message, type), f"{message!r} is no dataclass"
    fields = {"kind": message.kind} | dataclasses.asdict(message)
    return json.dumps(fields, default=_path_as_text).encode() + b"\n"


class Kinds(Generic[M]):
    """The kinds of messages that one end receives."""

    def __init__(self, *kinds: type[M]) -> None:
        self._kinds = {kind.kind: kind for kind in kinds}

    def decode(self, line: bytes) -> M:
        """The message of one line. Raises MessageError for one that is not of these kinds."""
        try:
            fields = json.loads(line)
        except ValueError:
            raise _refused(f"{line[:80]!r} is no JSON") from None
        if not isinstance(fields, dict) or "kind" not in fields:
            raise _refused(f"{line[:80]!r} has no kind")
        kind = fields.pop("kind")
        if kind not in self._kinds:
            raise _refused(f"a message is of kind {kind!r}; allowed: {', '.join(self._kinds)}")
        message: M = _made(self._kinds[kind], fields, str(kind))
        return message


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be sent")


def _refused(what: str) -> MessageError:
    return MessageError(
        f"{what}; the processes of this run are not of one version of shmzero: end it and start it again"
    )


def _hints(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _made(kind: type[Any], fields: Mapping[str, Any], where: str) -> Any:
    """A dataclass out of its fields, of which none may be missing and none unknown."""
    hints = _hints(kind)
    for name in fields.keys() - hints.keys():
        raise _refused(f"{where} has an unknown field {name!r}; known: {', '.join(hints)}")
    for name in hints.keys() - fields.keys():
        raise _refused(f"{where} lacks the field {name!r}")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in fields.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value of the annotated type out of what JSON made of it."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        rest = [part for part in parts if part is not NoneType]
        if len(rest) == 1:
            return _value(rest[0], value, where)
        if any(_is_plain(part, value) for part in rest):
            return value
    elif origin is Literal:
        if value in parts:
            return value
    elif origin is dict and isinstance(value, dict):
        key_of = int if parts[0] is int else str
        return {key_of(key): _value(parts[1], one, f"{where}[{key}]") for key, one in value.items()}
    elif origin in (list, tuple) and isinstance(value, list):
        found = [_value(parts[0], one, where) for one in value]
        return found if origin is list else tuple(found)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _made(hint, value, where)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif _is_plain(hint, value):
        return value
    raise _refused(f"{where} is {value!r}; allowed: {getattr(hint, '__name__', hint)}")


def _is_plain(hint: Any, value: Any) -> bool:
    """Whether a value is of one of JSON's own types, as annotated. A whole number will do for a float."""
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is hint
