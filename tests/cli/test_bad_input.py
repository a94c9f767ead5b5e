"""Surroundings that cannot be used: full disks, little shared memory, broken checkpoints.

The full disks are small tmpfs in a mount namespace of their own, where that is permitted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shmzero import play_rounds
from shmzero.errors import ConfigError
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.runs.records import Records
from tests.support.users import forbid_memfd

HASH = ("--evaluator", "hash", "--preset", "light")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shmzero.selfplay", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL)


def mounted(
    script: str, *arguments: object, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """A bash script with $1, $2... in a mount namespace of its own, and `before` done to its process first;
    skips the test where one of the two is forbidden."""
    unshare = ["unshare", "--mount", "--propagation", "private"]
    try:
        probe = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if probe.returncode != 0:
        pytest.skip(f"mounting is not permitted: {probe.stderr.strip()}")
    try:
        return subprocess.run(
            [*unshare, "bash", "-euc", script, "bash", *map(str, arguments)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            preexec_fn=before,
        )
    except subprocess.SubprocessError:
        pytest.skip("this machine takes no system call filter, or is no x86-64")


def last_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that begins with `error:` and ends what was said; nothing of it is a traceback."""
    assert done.returncode == code, done.stderr
    *_, last = done.stderr.splitlines()
    assert re.match("error: .", last) and done.stderr.count("error:") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return last


LITTLE_SHM = 'mount -t tmpfs -o size=1m tmpfs /dev/shm; code=0; "$@" || code=$?; ls -A /dev/shm; exit $code'
LARGE = (*HASH, "--max-batch", 4096)


def test_run_needs_no_room_in_dev_shm(tmp_path: Path) -> None:
    """As in a container, which has 64 MB of it: a run's segment is a file in memory."""
    done = mounted(LITTLE_SHM, *command(*LARGE, "--rounds", 5, "--out", tmp_path / "run"))
    assert done.returncode == 0 and "shmzero" not in done.stdout, done.stderr
    assert len(Records(tmp_path / "run")) == 5


def test_shared_memory_too_small_ends_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """Where the kernel has no files in memory, it comes out of /dev/shm."""
    done = mounted(LITTLE_SHM, *command(*LARGE, "--rounds", 5000, "--out", tmp_path / "run"), before=forbid_memfd)
    assert "/dev/shm has no room for" in last_line(done, 1)
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [10_000, 50_000, 200_000, 1_000_000])
def test_records_under_a_limit_of_the_files_size_name_it(tmp_path: Path, most: int) -> None:
    """SQLite says "disk I/O error", be it of the first file that it makes or of a later round."""
    program = (
        "import resource, sys; from shmzero import SearchConfig, play_rounds\n"
        "from pathlib import Path; from shmzero.mcts.evaluators import HashEvaluator; from shmzero.runs.record_writer import RecordWriter\n"
        "record = play_rounds(HashEvaluator(), 1, SearchConfig(simulations=0))[0]\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, -1))\n"
        "writer, number = RecordWriter(Path(sys.argv[1]), {}), 0\n"
        "while True:\n"
        "    writer.write([(i, [record[:8] + i.to_bytes(8, 'little') + record[16:]]) for i in range(number, number + 500)])\n"
        "    number += 500\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "run"], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("shmzero.errors.RecordError: record file ") and "I/O" not in last
    assert f"File too large: files of this process may have {most} bytes; allow larger ones (ulimit -f)" in last


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        ("RLIMIT_FSIZE, (10**6, -1)", "ulimit -f"),
        ("RLIMIT_AS, (pages * resource.getpagesize() + 10**6, -1)", "Cannot allocate memory"),
    ],
)
def test_limit_of_a_process_is_not_called_a_full_shared_memory(limit: str, named: str) -> None:
    program = (
        "import resource; from pathlib import Path; from shmzero.shm.segment import create_private\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        f"resource.setrlimit(resource.{limit})\n"
        "create_private(1, 2, 4, 4096)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("shmzero.errors.SegmentError: a segment of ") and named in last and "/dev/shm" not in last


def test_disk_filling_up_keeps_what_was_committed_and_goes_on_with_space(tmp_path: Path) -> None:
    """A disk of 1 MB takes 50 rounds and not 5000; with more room the same command completes them."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    script = """
    disk=$1 kept=$2; shift 2
    mount -t tmpfs -o size=1m tmpfs "$disk"
    "$@" --rounds 50 >"$kept/start.out" 2>"$kept/start.err"
    for name in first again; do
      code=0; "$@" --rounds 5000 >"$kept/$name.out" 2>"$kept/$name.err" || code=$?; echo $code >"$kept/$name.code"
    done
    mkdir "$kept/full"; cp "$disk"/rounds.sqlite* "$kept/full"
    mount -o remount,size=64m "$disk"
    "$@" --rounds 5000
    cp "$disk"/rounds.sqlite* "$kept"
    """
    done = mounted(script, disk, kept, *command(*HASH, "--simulations", 2, "--out", disk, "--json"))
    assert done.returncode == 0, done.stderr
    for name in ("first", "again"):
        said = (kept / f"{name}.err").read_text()
        assert (kept / f"{name}.code").read_text() == "1\n", said
        assert re.match("error: .*(full|No space left)", said.splitlines()[-1]) and "Traceback" not in said
        assert said.count("error:") == 1 and (kept / f"{name}.out").read_text() == ""
    full = list(Records(kept / "full"))
    assert 50 <= len(full) < 5000
    assert json.loads(done.stdout)["complete"] and json.loads(done.stdout)["rounds"] == 5000
    records = list(Records(kept))
    assert set(full) <= set(records)
    search = SearchConfig(determinizations=2, simulations=2, noise_fraction=0.25)
    assert records[:200] == play_rounds(HashEvaluator(), 200, search) and len(set(records)) == 5000


def test_unwritable_output_ends_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place, named in ((file, "file"), (file / "run", "file"), ("/proc/nothing/run", "/proc/nothing")):
        assert named in last_line(run(*HASH, "--rounds", 5, "--out", place), 1)
    (tmp_path / "run" / "rounds.sqlite").mkdir(parents=True)
    assert "rounds.sqlite" in last_line(run(*HASH, "--rounds", 5, "--out", tmp_path / "run"), 1)
    assert sorted(os.listdir(tmp_path)) == ["file", "run"] and file.read_text() == "mine"
    assert os.listdir(tmp_path / "run") == ["rounds.sqlite"] and os.listdir(tmp_path / "run/rounds.sqlite") == []


def test_read_only_disk_ends_with_one_line(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o ro tmpfs "$1"; shift; "$@"'
    done = mounted(script, tmp_path, *command(*HASH, "--rounds", 5, "--out", tmp_path / "run"))
    assert "Read-only file system" in last_line(done, 1)
    done = mounted(script, tmp_path, *command(*HASH, "--rounds", 5, "--out", tmp_path))
    assert "rounds.sqlite" in last_line(done, 1)


def test_broken_checkpoints_end_with_one_line_and_leave_nothing(tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.checkpoint import load_checkpoint, save_checkpoint
    from shmzero.nets.config import NetConfig

    good = tmp_path / "good.safetensors"
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), good)
    data = good.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = safetensors.torch.load(data)
    name = next(iter(tensors))
    broken = {
        "truncated": (data[:-100], "cannot be read"),
        "empty": (b"", "cannot be read"),
        "shapes": (safetensors.torch.save(tensors | {name: torch.zeros(3, 5)}, metadata), "does not fit"),
        "missing": (safetensors.torch.save({k: t for k, t in tensors.items() if k != name}, metadata), "does not fit"),
        "nan": (safetensors.torch.save(tensors | {name: tensors[name] * float("nan")}, metadata), "not finite"),
        "strange": (safetensors.torch.save(tensors), "has format None"),
    }
    started = {}
    for case, (content, named) in broken.items():
        path = tmp_path / f"{case}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=named):
            load_checkpoint(path)
        if case in ("empty", "missing"):
            continue  # torch takes long to import: not every case as a process as well
        arguments = command(
            "--checkpoint", path, "--device", "cpu", "--no-compile", "--rounds", 5, "--out", tmp_path / case
        )
        started[case] = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for case, process in started.items():
        out, err = process.communicate()
        line = last_line(subprocess.CompletedProcess([], process.returncode, out, err), 2)
        assert broken[case][1] in line and f"{case}.safetensors" in line and out == ""
        assert not (tmp_path / case).exists()


@pytest.mark.parametrize(("head", "said"), [("bids", "(the|a) policy"), ("value", "the value 3e[+]38")])
def test_network_that_answers_with_what_is_no_number_ends_the_run_and_nothing_is_recorded(
    tmp_path: Path, head: str, said: str
) -> None:
    """Its weights are finite: what it makes of them is not, or no sum of it would be."""
    import torch

    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.checkpoint import save_checkpoint
    from shmzero.nets.config import NetConfig

    net = BlobNet(NetConfig(width=16, hidden=16, blocks=1))
    with torch.no_grad():
        getattr(net, head).weight.fill_(3e38 if head == "bids" else 0.0)
        getattr(net, head).bias.fill_(3e38)
    save_checkpoint(net, tmp_path / "net.safetensors")
    done = run("--checkpoint", tmp_path / "net.safetensors", "--device", "cpu", "--no-compile", "--precision", "fp32",
               "--preset", "light", "--rounds", 5, "--out", tmp_path / "run")  # fmt: skip
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert re.search(f"the evaluator answered row [0-9]+ of its batch with {said}", done.stderr.splitlines()[-1])
    assert not (tmp_path / "run" / "rounds.sqlite").exists()
