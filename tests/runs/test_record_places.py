"""Run folders that can only be read: another user's, and on a read-only disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from shmzero import SearchConfig, play_rounds
from shmzero.files import append_line
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from shmzero.runs.folder import RECORDS_NAME
from shmzero.runs.record_writer import RecordWriter
from shmzero.runs.records import Records
from tests.cli.test_bad_input import mounted

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@pytest.fixture(scope="module")
def played() -> list[bytes]:
    return play_rounds(HashEvaluator(), 6, SearchConfig(simulations=0))


@pytest.fixture
def folder(played: list[bytes]) -> object:
    """A finished run of three rounds with a checkpoint and metrics, where everybody may look."""
    if os.geteuid() != 0:
        pytest.skip("another user's folder needs root")
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv")
    if (probe := as_nobody("import shmzero.records")).returncode:
        pytest.skip(f"another user cannot run this interpreter: {probe.stderr.strip().splitlines()[-1]}")
    folder = Path(
        subprocess.run(["mktemp", "-d", "/tmp/shmzero-test-XXXXXX"], capture_output=True, text=True).stdout.strip()
    )
    folder.chmod(0o755)
    run = folder / "run"
    writer = RecordWriter(run, {"seed": 1})
    writer.write([(number, [record]) for number, record in enumerate(played[:3])])
    writer.close()
    (run / "checkpoints").mkdir()
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), run / "checkpoints" / "00000001.safetensors")
    match = {"opponent": "random", "mode": "one", "mean": 0.0, "low": -1.0, "high": 1.0}
    append_line(run / "metrics.jsonl", {"elapsed_s": 1.0, "match": match})
    yield run
    shutil.rmtree(folder)


def as_nobody(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A Python program of a user who may read and not write."""
    return subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": "/nonexistent", "MPLCONFIGDIR": "/tmp/none"},
    )  # fmt: skip


READ = "import sys; from shmzero.records import main; sys.exit(main(sys.argv[1:]))"


def count_as_nobody(run: Path) -> str:
    done = as_nobody(READ, run, "--show", 100)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1]


def contents(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_finished_run_of_another_user_is_read(folder: Path) -> None:
    before = contents(folder)
    assert RECORDS_NAME in before and f"{RECORDS_NAME}-wal" not in before
    assert count_as_nobody(folder) == "3"
    assert contents(folder) == before


@pytest.mark.slow
def test_finished_run_on_a_read_only_disk_is_read_by_every_command(folder: Path) -> None:
    script = """
    mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"
    "$2" -m shmzero.records "$1"; "$2" -m shmzero.arena "$1:policy" random --deals 2
    """
    if importlib.util.find_spec("matplotlib"):
        script += '"$2" -m shmzero.plot "$1" --out "$1.png"; ! "$2" -m shmzero.plot "$1"'
    done = mounted(script, folder, sys.executable)
    assert done.returncode == 0, done.stderr
    assert "3 rounds" in done.stdout and "exact bids" in done.stdout
    assert (
        not importlib.util.find_spec("matplotlib") or "Read-only file system; choose a file with --out" in done.stderr
    )


def test_run_that_another_user_is_writing_is_read_as_it_grows(folder: Path, played: list[bytes]) -> None:
    writer = RecordWriter(folder, {"seed": 1})
    assert count_as_nobody(folder) == "3"
    writer.write([(3, played[3:4])])
    assert count_as_nobody(folder) == "4"
    writer.close()
    assert count_as_nobody(folder) == "4"


def killed(folder: Path, record: bytes) -> None:
    """A run is killed in the folder after it has committed one more round."""
    child = os.fork()
    if not child:
        RecordWriter(folder, {"seed": 1}).write([(3, [record])])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_killed_run_of_another_user_is_read_to_its_last_round_or_refused(folder: Path, played: list[bytes]) -> None:
    killed(folder, played[3])
    assert f"{RECORDS_NAME}-wal" in contents(folder) and count_as_nobody(folder) == "4"
    (folder / f"{RECORDS_NAME}-shm").unlink()
    done = as_nobody(READ, folder)
    assert done.returncode == 1 and "its last rounds lie in rounds.sqlite-wal" in done.stderr
    assert done.stderr.count("\n") == 1


def test_run_that_was_left_without_its_log_is_read_and_not_while_it_changes(folder: Path, played: list[bytes]) -> None:
    """So another program that looks at it leaves it: all rounds are in the file, which still counts as one with a log."""
    killed(folder, played[3])
    connection = sqlite3.connect(folder / RECORDS_NAME)
    connection.execute("SELECT count(*) FROM rounds").fetchone()
    connection.close()
    assert contents(folder) == ["checkpoints", "metrics.jsonl", RECORDS_NAME]
    program = (
        "import sys, pathlib; from shmzero.runs.records import Records; records = Records(sys.argv[1])\n"
        "print(len(records), flush=True); sys.stdin.readline(); print(len(records))"
    )
    with subprocess.Popen(
        [*AS_NOBODY, sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as reader:  # fmt: skip
        assert reader.stdin and reader.stdout
        assert reader.stdout.readline() == "4\n"
        writer = RecordWriter(folder, {"seed": 1})
        writer.write([(4, played[4:5])])
        _, said = reader.communicate("\n")
        writer.close()
    assert "RecordError" in said and "is being written again; open it once more" in said


def test_folder_that_may_not_be_looked_at_is_one_line_for_every_command(folder: Path) -> None:
    folder.chmod(0o700)
    for module, more in (("records", ()), ("plot", ()), ("arena", ("random", "--deals", "2"))):
        code = f"import sys; from shmzero.{module} import main; sys.exit(main(sys.argv[1:]))"
        done = as_nobody(code, folder, *more)
        assert done.returncode == 1 and "Permission denied" in done.stderr, (module, done.stderr)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_records_file_that_a_reader_has_open_is_closed_without_waiting_for_it(
    tmp_path: Path, played: list[bytes]
) -> None:
    writer = RecordWriter(tmp_path, {})
    writer.write([(0, played[:1])])
    reader = Records(tmp_path)
    writer.close()
    assert list(reader) == played[:1]
    reader.close()
    RecordWriter(tmp_path, {}).close()
    before = (tmp_path / RECORDS_NAME).read_bytes()
    RecordWriter(tmp_path, {}).close()
    assert contents(tmp_path) == [RECORDS_NAME]
    assert (tmp_path / RECORDS_NAME).read_bytes() == before, "who writes nothing changes nothing"
