"""Paths that are no text: for runs, checkpoints, settings and pictures, in every locale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shmzero import plot
from shmzero.arena import main as arena_main
from shmzero.engine.config import read_toml
from shmzero.errors import ConfigError
from shmzero.files import append_line, write_whole
from shmzero.learner.algorithm import Learner
from shmzero.learner.state import load_state, save_state
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.records import main as records_main
from shmzero.runs import metrics
from shmzero.runs.folder import RECORDS_NAME
from shmzero.runs.records import Records
from shmzero.selfplay import main as selfplay_main
from shmzero.selfplay import parse
from shmzero.settings import to_toml
from shmzero.training.config import TrainConfig

NO_TEXT = os.fsdecode(b"caf\xe9 \xff? 100% #1&x=\"q\"\n'$a$'\\")
"""A name in Latin-1, with what is special in an URI, in TOML, in a shell and in a formula."""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_path_that_is_no_text_holds_runs_checkpoints_states_and_settings(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    place = tmp_path / NO_TEXT
    place.mkdir()
    hash_rounds = ["--evaluator", "hash", "--preset", "light", "--rounds"]
    assert selfplay_main([*hash_rounds, "3", "--out", str(place / "run")]) == 0
    assert os.fsencode(place / "run" / RECORDS_NAME) in capfdbinary.readouterr().out
    assert selfplay_main(["--config", str(place / "run" / "config.toml"), "--rounds", "5"]) == 0
    assert len(Records(place / "run")) == 5
    capfdbinary.readouterr()
    assert records_main([str(place / "run")]) == 0
    assert capfdbinary.readouterr().out.startswith(os.fsencode(place / "run" / RECORDS_NAME) + b": 5 rounds")
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), place / "net.safetensors")
    load_checkpoint(place / "net.safetensors")
    assert arena_main([f"{place / 'net.safetensors'}:3x4", "random", "--deals", "2"]) == 0
    assert os.fsencode(place / "net.safetensors") in capfdbinary.readouterr().out
    save_state(Learner(TrainConfig().learner_config(), "cpu"), place / "learner.safetensors", {"rows": 5})
    assert load_state(Learner(TrainConfig().learner_config(), "cpu"), place / "learner.safetensors")["rows"] == 5


def test_path_that_is_no_text_titles_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    place = tmp_path / NO_TEXT
    place.mkdir()
    match = {"opponent": str(place / "net.safetensors"), "mode": "one", "mean": 0.0, "low": -1.0, "high": 1.0}
    append_line(place / "metrics.jsonl", {"elapsed_s": 1.0, "match": match})
    plot.plot(place, place / "curves.png")
    assert (place / "curves.png").stat().st_size > 1000


def test_settings_with_paths_of_any_characters_are_read_back_as_they_were(tmp_path: Path) -> None:
    for name in (NO_TEXT, "über", 'a\\b"c"', "a\nb\tc\x01\x7f"):
        path = tmp_path / name
        write_whole(tmp_path / "run.toml", to_toml({"checkpoint": path, "out": path, "opponent_pool": f"{path}:0.5"}))
        assert read_toml(tmp_path / "run.toml") == {"checkpoint": path, "out": path, "opponent_pool": f"{path}:0.5"}
        shutil.copy(tmp_path / "run.toml", path)
        assert parse(["--config", str(path)]).output.out == path


def test_path_is_printed_also_where_the_locale_knows_no_letters_beyond_ascii(tmp_path: Path) -> None:
    """Two letters of UTF-8 and one byte that is none, through a command's argument, its settings and its output."""
    place = os.fsencode(tmp_path) + b"/\xc3\xbc\xc3\xa9 \xe9"
    first = [
        b"-m",
        b"shmzero.selfplay",
        b"--evaluator",
        b"hash",
        b"--preset",
        b"light",
        b"--rounds",
        b"3",
        b"--out",
        place,
    ]
    again = [b"-m", b"shmzero.selfplay", b"--config", place + b"/config.toml", b"--rounds", b"4"]
    for arguments in (first, again):
        done = subprocess.run([os.fsencode(sys.executable), *arguments], capture_output=True, env=os.environ | ASCII)
        assert done.returncode == 0 and place in done.stdout, done.stderr
    for environment in (ASCII, {"PYTHONUTF8": "1"}):
        done = subprocess.run(
            [os.fsencode(sys.executable), b"-m", b"shmzero.records", place + b"/none"], capture_output=True,
            env=os.environ | environment,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith(b"error: there is no record file"), done.stderr


def test_training_with_tensorboard_refuses_a_folder_that_it_cannot_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="allowed: a folder whose path is UTF-8"):
        metrics.Board.check(tmp_path / NO_TEXT)
