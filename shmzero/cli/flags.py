"""Flags of commands: settings as options in groups, their help, and what is wrong with a flag as one line."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

from shmzero.errors import ConfigError
from shmzero.settings import Declaration, Kind, Settings, declarations, descriptions

HELP, HELP_ALL = ("-h", "--help"), "--help-all"


def say(line: str) -> None:
    """A line for people, on standard error."""
    print(line, file=sys.stderr)


class Layout(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and options in as many columns as the terminal has, at most 120."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns  # or what COLUMNS says, where that is a number
        columns = columns if os.environ.get("COLUMNS") else min(columns, 120)
        super().__init__(prog, max_help_position=30, width=max(columns, 40) - 2)


def near(one: str, other: str, typos: int) -> bool:
    """Whether so many typos make `other` of `one`: a letter too many, one missing, a wrong one, or two swapped."""
    if not one or not other:
        return len(one) + len(other) <= typos
    if one[0] == other[0]:
        return near(one[1:], other[1:], typos)
    rests = [(one[1:], other), (one, other[1:]), (one[1:], other[1:])]
    if one[:2] == other[1::-1]:
        rests.append((one[2:], other[2:]))
    return typos > 0 and any(near(*rest, typos - 1) for rest in rests)


def meant(word: str, flags: Iterable[str]) -> str | None:
    """The one of `flags` that `word` is the beginning of, or else differs from by a typo, in long names by two."""
    names = {flag.lstrip("-"): flag for flag in flags if flag.startswith("--")}
    written = word.lstrip("-")
    if len(written) > 2 and (begun := [flag for name, flag in names.items() if name.startswith(written)]):
        return begun[0]
    for typos, shortest in ((1, 0), (2, 5)):
        for name, flag in names.items():
            if min(len(written), len(name)) >= shortest and near(written, name, typos):
                return flag
    return None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of printing its usage."""

    def __init__(self, **options: Any) -> None:
        """Abbreviations are not allowed, so that a new option can take away no old one.

        Where `add_help` is left as it is, nothing is hidden from the help, and both flags show the same.
        """
        super().__init__(**({"allow_abbrev": False} | options | {"add_help": False}))
        if options.get("add_help", True):
            self.add_argument(*HELP, HELP_ALL, action="help", help="show this help and exit")

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message.removeprefix('argument ')}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As ArgumentParser's, but for what it says of unknown options: which one may have been meant."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = meant(unknown[0].partition("=")[0], self._option_string_actions)
            perhaps = f"; perhaps {flag}" if flag else ""
            raise ConfigError(f"unrecognized options: {', '.join(unknown)}{perhaps}; see {HELP_ALL}")
        return found


def renamed_words(words: Sequence[str], old_names: Mapping[str, str], say: Callable[[str], None] = say) -> list[str]:
    """The words of a command under the flags' names of now; `say` gets a line for each old one.

    old_names: settings by their old names, with their new ones. `_` in a flag's name is taken for `-`.
    """
    old = {old.replace("_", "-"): new.replace("_", "-") for old, new in old_names.items()}
    found = []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("_", "-")
            no, name = ("--no-", flag[5:]) if flag.startswith("--no-") else ("--", flag[2:])
            if name in old:
                say(f"note: {flag} is called {no + old[name]} now")
                flag = no + old[name]
        found.append(flag + equals + value)
    return found


def split_help(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without those that ask for help, and which help: "usual", "all" or None."""
    rest = [word for word in words if word not in (*HELP, HELP_ALL)]
    return rest, "all" if HELP_ALL in words else None if len(rest) == len(words) else "usual"


def add_settings(
    parser: argparse.ArgumentParser,
    kind: type[Settings],
    asked: Settings | None = None,
    resolved: Mapping[str, Any] | None = None,
    everything: bool = True,
) -> None:
    """Give `parser` an option for each setting, grouped as they are declared; what is not given is not in the result.

    For a help: `asked` has the defaults, `resolved` what they come to on this machine. Without `everything` only the
    usual settings are shown.
    """
    groups: dict[str, Any] = {}
    texts = {declared.owner: descriptions(declared.owner) for declared in declarations(kind).values()} if asked else {}
    for name, declared in declarations(kind).items():
        title = f"{declared.owner.title} options"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        shown = asked is not None and (everything or declared.usual)
        text = argparse.SUPPRESS
        if shown:
            given = reduce(getattr, declared.path, asked)
            text = _text(texts[declared.owner][declared.path[-1]], given, (resolved or {}).get(name, given))
        flag = "--" + name.replace("_", "-")
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if bool in declared.kind.types:
            groups[title].add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            groups[title].add_argument(flag, type=_reader(declared.kind), metavar=_metavar(declared), **options)


def _text(text: str, given: Any, resolved: Any) -> str:
    """A setting's help: its docstring and its default, as what that comes to on this machine."""
    here = "" if resolved == given else " here"
    if resolved is None or resolved == "":
        return text.replace("%", "%%")
    value = {True: "yes", False: "no"}.get(resolved, resolved) if isinstance(resolved, bool) else resolved
    value = f"{value:g}" if isinstance(value, float) else value
    return f"{text} (default{here}: {value})".replace("%", "%%")


def _metavar(declared: Declaration) -> str:
    """What stands for a setting's value in the help."""
    if declared.kind.choices:
        return "{" + ",".join(declared.kind.choices) + "}"
    types = {int: "N", float: "X", Path: "PATH"}
    return next((types[known] for known in declared.kind.types if known in types), "TEXT")


def _reader(kind: Kind) -> Callable[[str], Any]:
    """What makes a setting's value of a word. The settings themselves say whether it is allowed."""

    def read(word: str) -> Any:
        if kind.optional and word.lower() == "none":
            return None
        try:
            return next(known for known in kind.types if known is not type(None))(word)
        except ValueError:
            what = "number" if float in kind.types else "whole number"
            raise argparse.ArgumentTypeError(f"{word!r} is no {what}") from None

    return read


def settings_parser(
    prog: str,
    description: str,
    examples: str,
    kind: type[Settings],
    asked: Settings | None = None,
    resolved: Mapping[str, Any] | None = None,
    everything: bool = True,
) -> Parser:
    """A command's parser: an option for each setting of `kind`, and the two of help; see add_settings."""
    hint = "" if everything else f"{HELP_ALL} shows all {len(declarations(kind))} settings.\n\n"
    parser = Parser(
        prog=prog,
        usage=f"{prog} [options]",
        description=description,
        epilog=hint + examples,
        formatter_class=Layout,
        add_help=False,
    )
    parser.add_argument(*HELP, action="store_true", default=argparse.SUPPRESS, help="show the usual options and exit")
    parser.add_argument(HELP_ALL, action="store_true", default=argparse.SUPPRESS, help="show all options and exit")
    add_settings(parser, kind, asked, resolved, everything)
    return parser
