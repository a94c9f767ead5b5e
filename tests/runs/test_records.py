"""The record file: written, read back, replayed; and files that are none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmzero import SearchConfig, _core, play_rounds
from shmzero.errors import ConfigError, FolderBusy, RecordError
from shmzero.learner.feed import newest_records
from shmzero.records import main
from shmzero.runs.checkpoints import checkpoints, newest_checkpoint, numbered_path
from shmzero.runs.folder import RECORDS_NAME
from shmzero.runs.record_writer import RecordWriter
from shmzero.runs.records import Records
from tests.support.fakes import HashEvaluator

SETTINGS = {"seed": 3, "players": "3-5"}


@pytest.fixture(scope="module")
def played() -> list[bytes]:
    search = SearchConfig(determinizations=1, simulations=4)
    return play_rounds(HashEvaluator(), 300, search, seed=3, players="3-5", cards="1-4")


@pytest.fixture
def folder(tmp_path: Path, played: list[bytes]) -> Path:
    """A run folder with 300 rounds, closed."""
    writer = RecordWriter(tmp_path, SETTINGS)
    assert writer.write(list(enumerate([record] for record in played))) == 300
    writer.close()
    return tmp_path


def finished(writer: RecordWriter) -> set[int]:
    """The finished units below 400."""
    missing = set(takewhile(lambda unit: unit < 400, writer.units().missing()))
    return set(range(400)) - missing


def refusal(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line that `python -m shmzero.records` ends with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: [^\n]+\n", printed.err), printed
    return printed.err


def test_records_written_count_read_and_replay_as_they_were(folder: Path, played: list[bytes]) -> None:
    for place in (folder, folder / RECORDS_NAME, str(folder)):
        records = Records(place)
        assert len(records) == 300 and list(records) == played and records.settings() == SETTINGS
    assert [_core.decode_record(record)["id"] for record in records] == list(range(300))
    assert list(records.read(first=290)) == played[290:]
    assert list(records.read(first=7, most=5)) == played[7:12]
    assert list(records.read(first=300)) == [] and list(records.read(most=0)) == []
    assert records.newest(4) == played[-4:]
    rows, wanted = records.replay(first=10, most=50, seat_seed=1), _core.replay(played[10:60], 1)
    assert rows.keys() == wanted.keys() and set(rows["ids"]) == set(range(10, 60))
    for name in wanted:
        assert np.array_equal(rows[name], wanted[name]), name


def test_records_are_open_to_the_end_of_their_block(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def still_open() -> list[str]:
        links = [entry.path for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
        return [target for target in map(os.path.realpath, links) if target.startswith(str(folder / RECORDS_NAME))]

    before = still_open()
    with Records(folder) as records:
        assert len(records) == 300 and len(still_open()) > len(before)
    assert still_open() == before
    with pytest.raises(RecordError, match="cannot be read"):
        len(records)
    reading = newest_records(folder, 100)  # a generator that is not read to its end
    next(reading)
    del reading
    assert still_open() == before
    assert main([str(folder)]) == 0 and still_open() == before


def test_records_more_than_one_transaction_of_reading_come_once_and_in_order(
    tmp_path: Path, played: list[bytes]
) -> None:
    writer = RecordWriter(tmp_path, SETTINGS)
    record = played[0]
    many = [record[:8] + np.uint64(i).tobytes() + record[16:] for i in range(2500)]
    assert writer.write([(i, [many[i]]) for i in reversed(range(2500))]) == 2500
    assert list(Records(tmp_path)) == many and list(Records(tmp_path).read(5, 2000)) == many[5:2005]
    writer.close()


def test_record_writer_writes_a_round_once_and_continues(folder: Path, played: list[bytes]) -> None:
    writer = RecordWriter(folder, SETTINGS)
    assert finished(writer) == set(range(300))
    assert writer.write([(5, [played[6]]), (300, [played[5]])]) == 0
    assert writer.count() == 300 and list(Records(folder)) == played
    writer.close()
    with pytest.raises(ConfigError, match="seed: 3 there, 4 now"):
        RecordWriter(folder, SETTINGS | {"seed": 4})


def test_records_reader_sees_whole_transactions_while_they_are_written(tmp_path: Path, played: list[bytes]) -> None:
    writer = RecordWriter(tmp_path, SETTINGS)
    reader = Records(tmp_path)
    for first in range(0, 300, 50):
        reading = reader.read()
        head = [next(reading) for _ in range(min(first, 3))]
        assert writer.write([(i, [played[i]]) for i in range(first, first + 50)]) == 50
        assert head + list(reading) in (played[:first], played[: first + 50])
        assert len(reader) == first + 50 and list(reader) == played[: first + 50]
    other = sqlite3.connect(tmp_path / RECORDS_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM rounds")
    assert list(reader) == played  # not committed, so not there
    other.execute("ROLLBACK")
    other.close()
    writer.close()


@pytest.mark.parametrize("statements", range(9))
def test_record_writer_killed_while_it_creates_the_file_leaves_one_that_goes_on(
    tmp_path: Path, statements: int, played: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(sqlite3.Connection):
        left = statements

        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return super().execute(*arguments)

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            sqlite3.connect = partial(sqlite3.connect, factory=Killed)  # type: ignore[assignment]
            RecordWriter(tmp_path, SETTINGS)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == -signal.SIGKILL and (tmp_path / RECORDS_NAME).exists():
        assert "there are no rounds" in refusal(capsys, 2, tmp_path)
    writer = RecordWriter(tmp_path, SETTINGS)
    assert writer.write([(0, [played[0]])]) == 1
    writer.close()
    assert list(Records(tmp_path)) == [played[0]] and Records(tmp_path).settings() == SETTINGS


def test_records_of_another_schema_are_refused_untouched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(folder / RECORDS_NAME) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    before = (folder / RECORDS_NAME).read_bytes()
    assert "schema version 99; this program reads 1" in refusal(capsys, 2, folder)
    with pytest.raises(ConfigError, match="schema version 99; this program reads 1"):
        RecordWriter(folder, SETTINGS)
    assert (folder / RECORDS_NAME).read_bytes() == before and len(list(folder.iterdir())) == 1


def test_records_database_of_another_program_is_refused_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(tmp_path / RECORDS_NAME) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    before = (tmp_path / RECORDS_NAME).read_bytes()
    assert "is no record file of shmzero" in refusal(capsys, 2, tmp_path)
    with pytest.raises(ConfigError, match="is no record file of shmzero"):
        RecordWriter(tmp_path, SETTINGS)
    assert (tmp_path / RECORDS_NAME).read_bytes() == before


@pytest.mark.parametrize("damage", ["not one", "half", "one page", "zeroed pages"])
def test_records_damaged_file_ends_with_one_line_untouched(
    folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / RECORDS_NAME
    data = path.read_bytes()
    page = int.from_bytes(data[16:18], "big")
    assert len(data) > 8 * page
    path.write_bytes(
        {
            "not one": b"these are my notes\n" * 500,
            "half": data[: len(data) // 2],
            "one page": data[:page],
            "zeroed pages": data[:page] + bytes(len(data) - page),
        }[damage]
    )
    before = path.read_bytes()
    code = main([str(folder), "--show", "1000"])
    assert code in (1, 2)
    assert str(path) in refusal(capsys, code, folder, "--show", 1000)
    with pytest.raises((ConfigError, RecordError), match=re.escape(str(path))):
        writer = RecordWriter(folder, SETTINGS)
        try:
            writer.units()
        finally:
            writer.close()
    assert path.read_bytes() == before


def test_records_bytes_that_are_no_round_end_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(folder / RECORDS_NAME) as connection:
        connection.execute("UPDATE rounds SET record = substr(record, 1, 30) WHERE id = 4")
    connection.close()
    assert "it ends too early" in refusal(capsys, 1, folder, "--first", 4)
    assert "it ends too early" in refusal(capsys, 1, folder, "--first", 4, "--json")
    with pytest.raises(RecordError, match="holds what is no round: .*it ends too early"):
        Records(folder).replay()
    assert len(Records(folder).replay(first=5)["ids"]) > 0


def test_records_command_refuses_what_it_cannot_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"there is no record file {folder}/none" in refusal(capsys, 2, folder / "none")
    (folder / "empty").mkdir()
    assert "there is no record file" in refusal(capsys, 2, folder / "empty")
    assert list((folder / "empty").iterdir()) == []
    assert "show is -1" in refusal(capsys, 2, folder, "--show", -1)
    assert "first is -1" in refusal(capsys, 2, folder, "--first", -1)
    assert "first is" in refusal(capsys, 2, folder, "--first", 2**64)
    assert "--show: invalid int value: 'all'" in refusal(capsys, 2, folder, "--show", "all")
    assert "required: path" in refusal(capsys, 2)


def test_records_command_shows_rounds(folder: Path, played: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--first", "8", "--show", "2"]) == 0
    text = capsys.readouterr().out
    assert "300 rounds" in text and "round 8:" in text and "round 9:" in text and "round 10:" not in text
    assert main([str(folder), "--first", "8", "--show", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rounds"] == 300 and shown["settings"] == SETTINGS
    assert shown["shown"] == json.loads(json.dumps([_core.decode_record(record) for record in played[8:10]]))


def test_records_path_may_hold_any_character(tmp_path: Path, played: list[bytes]) -> None:
    folder = tmp_path / "what? 100% #1 & über"
    folder.mkdir()
    writer = RecordWriter(folder, SETTINGS)
    writer.write([(0, [played[0]])])
    writer.close()
    assert [path.name for path in folder.iterdir()] == [RECORDS_NAME] and list(Records(folder)) == played[:1]


def test_record_writer_has_its_folder_to_itself(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, SETTINGS)
    with pytest.raises(FolderBusy, match="is being written by another process"):
        RecordWriter(tmp_path, SETTINGS)
    assert len(Records(tmp_path)) == 0  # reading is free
    writer.close()
    RecordWriter(tmp_path, SETTINGS).close()


def test_record_writer_tells_games_of_which_only_the_beginning_is_there(tmp_path: Path) -> None:
    search = SearchConfig(simulations=0)
    records = play_rounds(HashEvaluator(), 3, search, players="3", cards="2", games=True)
    assert len(records) == 3 * 5
    writer = RecordWriter(tmp_path, SETTINGS)
    writer.write([(0, records[:5]), (1, records[5:8])])
    assert finished(writer) == {0} and writer.in_progress() == {1: records[5:8]}
    assert writer.write([(1, records[8:10]), (2, records[10:14])]) == 6
    writer.close()
    writer = RecordWriter(tmp_path, SETTINGS)
    assert finished(writer) == {0, 1} and writer.in_progress() == {2: records[10:14]}
    writer.close()


def test_record_writer_keeps_the_weights_that_played_last(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, SETTINGS)
    assert writer.weights() is None
    writer.set_weights(3, "abc")
    writer.set_weights(4, None)
    writer.close()
    writer = RecordWriter(tmp_path, SETTINGS)
    assert writer.weights() == (4, None)
    writer.close()


def test_checkpoints_are_those_that_a_number_names_in_its_order(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("00000900-best.safetensors", "900.copy.safetensors", ".00000901.safetensors.1", "notes.txt"):
        (folder / name).touch()
    numbers = [700, 99_999_999, 100_000_000]  # the last has a digit more
    for number in numbers:
        numbered_path(folder, number).touch()
    assert [int(path.stem) for path in checkpoints(tmp_path)] == numbers
    assert newest_checkpoint(tmp_path) == folder / "100000000.safetensors"


def test_record_writer_that_goes_on_needs_no_memory_for_what_is_finished(tmp_path: Path, played: list[bytes]) -> None:
    """Neither for rounds, of which the first may be missing, nor for games."""
    game = play_rounds(HashEvaluator(), 1, SearchConfig(simulations=0), players="3", cards="1", games=True)
    for kind, records in (("rounds", played[:1]), ("games", game)):
        writer = RecordWriter(tmp_path / kind, SETTINGS)
        row = "INSERT INTO rounds VALUES (?, ?, 3, 1, ?)"
        many = 20_000 // len(records)
        numbers = (
            (unit * len(records) + i, unit, record) for unit in range(1, many) for i, record in enumerate(records)
        )
        writer._connection.execute("BEGIN")
        writer._connection.executemany(row, numbers)
        writer._connection.execute("COMMIT")
        tracemalloc.start()
        ledger = writer.units()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert ledger.count_below(10**6) == many - 1 and list(islice(ledger.missing(), 2)) == [0, many]
        assert peak_bytes < 200_000
        writer.close()


WITHOUT_LOCKS = """
import ctypes, os, struct, sys
# A filter of the kernel's: the calls whose numbers are given fail, as on a file system that knows no locks.
numbers, words = [int(number) for number in sys.argv[1].split(",")], []
words.append(struct.pack("HBBI", 0x20, 0, 0, 0))  # load the call's number
for left, number in zip(range(len(numbers), 0, -1), numbers):
    words.append(struct.pack("HBBI", 0x15, left, 0, number))
words += [struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("HBBI", 6, 0, 0, 0x00050000 | int(sys.argv[2]))]
code = ctypes.create_string_buffer(b"".join(words))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(words), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit(77)
del sys.argv[:3]
"""


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_record_writer_says_that_a_folder_cannot_be_locked_and_leaves_nothing(tmp_path: Path, error: int) -> None:
    flock = {"x86_64": 73, "aarch64": 32}.get(platform.machine())
    if flock is None:
        pytest.skip(f"the number of flock is not known on {platform.machine()}")
    program = WITHOUT_LOCKS + (
        "from shmzero.runs.record_writer import RecordWriter\nfrom shmzero.cli.command import run_command\n"
        f"sys.exit(run_command(lambda: RecordWriter(__import__('pathlib').Path({str(tmp_path / 'run')!r}), {{}}) and 0))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(flock), str(error), ""], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("filters of system calls are not permitted")
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []
    assert re.fullmatch(r"error: run folder \S+ cannot be locked: .*use a folder on a local disk\n", done.stderr), (
        done.stderr
    )


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR_SHMOPEN])
def test_records_that_cannot_be_locked_are_not_said_to_be_another_file(
    folder: Path, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unlockable(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            if "sqlite_master" in arguments[0]:
                error = sqlite3.OperationalError("locking protocol")
                error.sqlite_errorcode = code
                raise error
            return super().execute(*arguments)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Unlockable))
    line = refusal(capsys, 1, folder)
    assert "cannot be read: locking protocol: " in line and "use a folder on a local disk" in line
    with pytest.raises(RecordError, match="cannot be read: locking protocol"):
        RecordWriter(folder, SETTINGS)


def test_record_file_that_another_program_has_locked_says_so(folder: Path, played: list[bytes]) -> None:
    writer = RecordWriter(folder, SETTINGS)
    writer._connection.execute("PRAGMA busy_timeout = 0")
    with contextlib.closing(sqlite3.connect(folder / RECORDS_NAME, isolation_level=None)) as browser:
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            RecordError, match="database is locked: another program has it locked, such as a database browser"
        ):
            writer.set_weights(1, None)
    writer.close()
