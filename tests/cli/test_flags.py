"""The flags of every command that a script may hold: each is still taken, and a new one joins them.

tests/golden/flags.json has an example of each flag as the command's words. What a flag does is not looked at here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from shmzero import arena, plot, records, selfplay, serve, train
from shmzero.errors import ConfigError
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from tests.golden import FOLDER
from tests.golden.old_runs import lay_out
from tools import bench

FLAGS: dict[str, dict[str, str]] = json.loads((FOLDER / "flags.json").read_text())
NEW_FLAGS: dict[str, dict[str, str]] = json.loads((FOLDER / "new_flags.json").read_text())
"""Flags that came after version 0.1.0."""


def _records(words: list[str]) -> None:
    assert records.main(words) == 0


def _plot(words: list[str]) -> None:
    assert plot.main(words) == 0


PARSERS: dict[str, Callable[[list[str]], object]] = {
    "selfplay": selfplay.parse, "train": train.parse, "serve": serve.parse, "arena": arena.parse, "records": _records, "plot": _plot,
}  # fmt: skip
"""What takes the words of a command and starts nothing; `records` prints, and `plot` draws nothing here."""
MAINS: dict[str, Callable[[list[str]], int]] = {
    "selfplay": selfplay.main, "train": train.main, "serve": serve.main, "arena": arena.main, "records": records.main,
    "plot": plot.main,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name."""
    found = tmp_path_factory.mktemp("flags")
    for name, state in (("rounds", "finished"), ("wins", "finished")):
        lay_out(name, found, state)
    save_checkpoint(BlobNet(NetConfig(width=8, hidden=8, blocks=1)), found / "net.safetensors")
    return found


@pytest.mark.parametrize("command", list(FLAGS | NEW_FLAGS))
def test_flags_that_a_command_has_had_are_taken(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("shmzero.plot.plot", lambda run, out: None)
    name, _, benchmark = command.partition(" ")
    for flag, line in (FLAGS.get(command, {}) | NEW_FLAGS.get(command, {})).items():
        words = shlex.split(line)
        assert flag in words
        if name == "bench":
            bench.parser().parse_args([benchmark, *words])
        else:
            PARSERS[name](words)


def test_flags_are_refused_by_the_same_parsers_where_there_are_none_of_that_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for command, flags in FLAGS.items():
        name, _, benchmark = command.partition(" ")
        words = [*shlex.split(next(iter(flags.values()))), "--no-such-flag"]
        if name in ("records", "plot"):
            assert MAINS[name](words) == 2
            continue
        with pytest.raises(ConfigError, match="no-such-flag"):
            if name == "bench":
                bench.parser().parse_args([benchmark, *words])
            else:
                PARSERS[name](words)


@pytest.mark.parametrize("command", list(FLAGS | NEW_FLAGS))
def test_flags_that_the_help_names_are_among_those_that_stay(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no flag is broken over two lines
    name, _, benchmark = command.partition(" ")
    with pytest.raises(SystemExit):
        bench.main([benchmark, "--help-all"]) if name == "bench" else MAINS[name](["--help-all"])
    text = capsys.readouterr().out.replace("selfplay --config", "")  # a benchmark's word of another command
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help"}
    assert len(shown) > 0 and shown <= {*FLAGS.get(command, {}), *NEW_FLAGS.get(command, {}), "--help-all"}, (
        "give an example of the new flag in tests/golden/new_flags.json"
    )


def test_flags_are_listed_for_every_benchmark() -> None:
    assert {f"bench {name}" for name in (*bench.BENCHMARKS, "report", "all")} <= {*FLAGS, *NEW_FLAGS}


def test_package_lists_the_commands_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    from shmzero.__main__ import main

    assert main([]) == 0
    named = re.findall(r"^  python -m shmzero\.(\w+) +\w", capsys.readouterr().out, re.MULTILINE)
    assert set(named) == PARSERS.keys()
    assert main(["selfplay"]) == 2


@pytest.mark.parametrize("command", MAINS)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal_and_shows_each_default_once(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lengths = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            PARSERS[command]([flag])
        options, examples, _ = capsys.readouterr().out.partition("examples:")
        assert examples
        lengths[flag] = len(options.splitlines())
        assert max(map(len, options.splitlines())) < columns
        assert "None" not in options and "{None}" not in options
        for option in re.split(r"\n  (?=-)", options)[1:]:
            assert option.count("(default") <= 1, option
        assert len(re.findall(r"^[a-z]+ options:$", options, re.MULTILINE)) >= 1  # besides those of help
    if command in ("records", "plot"):  # they hide nothing
        assert lengths["--help"] == lengths["--help-all"]
    else:
        assert lengths["--help"] < lengths["--help-all"]


@pytest.mark.parametrize("columns", ["", "wide", "-5", "0"])
def test_help_is_shown_whatever_stands_in_columns(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        selfplay.main(["--help"])
    assert "Search effort, worlds" in capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    """What a command says of words that it does not take."""
    place = ["runs/a"] if command in ("train", "records", "plot") else []
    assert MAINS[command]([*place, *words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flag", "meant"),
    [
        ("selfplay", "--rouns", "--rounds"),
        ("selfplay", "--Rounds", "--rounds"),
        ("selfplay", "-rounds", "--rounds"),
        ("selfplay", "--sede", "--seed"),
        ("selfplay", "--no-jsno", "--no-json"),
        ("selfplay", "--determ", "--determinizations"),
        ("train", "--learningrat", "--learning-rate"),
        ("arena", "--thread=2", "--threads"),
        ("serve", "--tredas=7", "--threads"),
        ("serve", "--time", "--timeout-ms"),
        ("records", "--frist", "--first"),
        ("plot", "--uot", "--out"),
    ],
)
def test_unknown_flag_near_a_known_one_is_answered_with_that(
    command: str, flag: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, command, flag) == f"error: unrecognized options: {flag}; perhaps {meant}; see --help-all\n"


@pytest.mark.parametrize("command", MAINS)
@pytest.mark.parametrize(
    "flag", ["--bogus", "--xyz", "--owe", "--speed-up", "--no", "-o", "--learn-it-faster", "--" + "e" * 5000]
)
def test_unknown_flag_near_no_other_is_answered_with_where_the_flags_are(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, command, flag) == f"error: unrecognized options: {flag}; see --help-all\n"


def test_old_flags_and_keys_are_named_with_their_new_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.toml").write_text('seats = "maximise"\nsearch = "3x30"\n')
    found, _, _ = train.parse(["run", "--config", str(tmp_path / "old.toml"), "--opponents", "mc90", "--no-games"])
    assert (found.search.opponents, found.matches.match_opponents) == ("maximise", "mc90")
    assert capsys.readouterr().err.splitlines() == [
        "note: --opponents is called --match-opponents now",
        "note: --no-games is called --no-whole-games now",
        f"note: seats in {tmp_path / 'old.toml'} is called opponent_model now",
    ]
