"""Flags of commands: settings as options in groups, their help, and what is wrong with a flag as one line."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
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
        columns = int(os.environ.get("COLUMNS", 0)) or min(shutil.get_terminal_size().columns, 120)
        super().__init__(prog, max_help_position=30, width=max(columns, 40) - 2)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of printing its usage."""

    def __init__(self, **options: Any) -> None:
        """Abbreviations are not allowed, so that a new option can take away no old one."""
        super().__init__(**({"allow_abbrev": False} | options))

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message.removeprefix('argument ')}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As ArgumentParser's, but for what it says of unknown options: which one may have been meant."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(name, [word for word in self._option_string_actions if "--" in word], 1)
            meant = f"; perhaps {close[0]}" if close else ""
            self.error(f"unrecognized options: {', '.join(unknown)}{meant}")
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
