"""Run folders of an earlier version: how they were made, and how a test gets one to go on with.

They lie in tests/golden/runs: interrupted/ holds what a Ctrl-C left of each command in runs.toml, finished/ what some of the
commands leave in the end. `python -m tests.golden.old_runs FOLDER` makes such folders with the version of today in FOLDER,
for a next generation of test data; what is here already stays as it is.

A training run's networks and learner state are 5 MB of numbers, and are kept without them: weights.json.gz has the head of each
file, all names, types and shapes as the version wrote them, and of each tensor its mean, spread and range. `lay_out` fills
them with noise like that. What has one value (the optimiser's counts) and bytes (the random generator) are kept exactly.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import json
import shlex
import shutil
import signal
import sys
import tomllib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from shmzero.errors import ConfigError
from shmzero.runs.records import Records
from tests.support.faults import DEVICE, slow_device, with_fault
from tests.support.processes import start, wait_for

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "runs"
WEIGHTS_NAME = "weights.json.gz"
RUNS: dict[str, dict[str, Any]] = {
    name: run for name, run in tomllib.loads((FOLDER / "runs.toml").read_text()).items() if isinstance(run, dict)
}
INTERRUPTED, FINISHED = (
    [name for name, run in RUNS.items() if state in run["kept"]] for state in ("interrupted", "finished")
)


def words(name: str) -> list[str]:
    """What follows `python -m` in a run's command: the module and its flags."""
    return shlex.split(RUNS[name]["command"])[2:]


def lay_out(name: str, place: Path, state: str = "interrupted") -> Path:
    """Copy a run's folder, and the networks that its command names, into `place`, where the command is then to be run."""
    run = place / name
    shutil.copytree(FOLDER / state / name, run)
    for network in FOLDER.glob("*.safetensors"):
        shutil.copy(network, place)
    weights = run / WEIGHTS_NAME
    if weights.exists():
        for path, file in json.loads(gzip.decompress(weights.read_bytes())).items():
            (run / path).parent.mkdir(exist_ok=True)
            tensors = {name: filled(name, *about) for name, about in file["tensors"].items()}
            safetensors.numpy.save_file(tensors, run / path, file["metadata"])
        weights.unlink()
    return run


def filled(name: str, dtype: str, shape: list[int], *about: Any) -> np.ndarray:
    """A tensor out of what `described` says; a network and its average are as alike as they were."""
    if isinstance(about[0], str):
        return np.frombuffer(zlib.decompress(base64.b64decode(about[0])), dtype).reshape(shape)
    mean, deviation, low, high = about
    rng = np.random.default_rng(zlib.crc32(name.removeprefix("net.").removeprefix("ema.").encode()))
    if low >= 0:
        low = max(low, mean / 10)  # a mean square of 0 beside a mean that is none would make a step of any length
    return np.asarray(np.clip(rng.normal(mean, deviation, shape), low, high), dtype)


def described(tensor: np.ndarray) -> list[Any]:
    """Type and shape; then bytes, packed, or mean, standard deviation, lowest and highest value."""
    head = [tensor.dtype.str, list(tensor.shape)]
    if tensor.dtype.kind != "f":
        return [*head, base64.b64encode(zlib.compress(tensor.tobytes(), 9)).decode()]
    low, high = float(tensor.min()), float(tensor.max())
    if low == high:
        return [*head, low, 0, low, low]
    return [*head, *(float(f"{value:.3g}") for value in (tensor.mean(), tensor.std(), low, high))]


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def describe_weights(run: Path) -> None:
    """Put a run's weights.json.gz in the place of its files of weights."""
    files = []
    for path in sorted(run.rglob("*.safetensors")):
        with safetensors.safe_open(path, "numpy") as file:
            lines = [f'"{name}":{_json(described(file.get_tensor(name)))}' for name in file.keys()]  # noqa: SIM118
            head = f'"{path.relative_to(run)}":{{"metadata":{_json(file.metadata())},"tensors":{{\n'
            files.append(head + ",\n".join(lines) + "\n}}")
        path.unlink()
        if path.parent != run and not any(path.parent.iterdir()):
            path.parent.rmdir()
    if files:
        text = "{\n" + ",\n".join(files) + "\n}\n"
        (run / WEIGHTS_NAME).write_bytes(gzip.compress(text.encode(), mtime=0))


# --- making them ----------------------------------------------------------------------------------------------------------


def make_networks(place: Path) -> None:
    """Two networks as small as they come, for self-play to load."""
    from shmzero.nets.blob_net import BlobNet
    from shmzero.nets.checkpoint import save_checkpoint
    from shmzero.nets.config import NetConfig

    for seed, name in enumerate(("net", "older")):
        save_checkpoint(BlobNet(NetConfig(width=8, hidden=8, blocks=1), seed), place / f"{name}.safetensors")


def is_half_way(name: str, run: Path) -> bool:
    """Whether a run has come to the point at which it is to be interrupted."""
    metrics = run / "metrics.jsonl"
    if words(name)[0] == "shmzero.train" and not (metrics.exists() and '"match"' in metrics.read_text()):
        return False
    with contextlib.suppress(ConfigError):
        records = Records(run)
        try:
            return len(records) >= RUNS[name]["stop_rounds"]
        finally:
            records.close()  # or SQLite's log would stay beside the file after the run's end
    return False


def make(name: str, place: Path, interrupted: bool) -> None:
    """Run a command in `place`, to its end or to a Ctrl-C, and keep what `lay_out` takes."""
    run = place / name
    slow = with_fault(DEVICE, slow_device, RUNS[name]["slow_s"]) if interrupted else None
    process = start(*words(name), path=ROOT, cwd=place, environment=slow)
    if interrupted:
        wait_for(lambda: is_half_way(name, run), process)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    print(name, out, err)
    wanted = 130 if interrupted else 0
    if process.returncode != wanted:
        raise SystemExit(f"{name} ended with status {process.returncode} instead of {wanted}")
    describe_weights(run)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.old_runs", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--only", nargs="*", default=list(RUNS), help="these runs alone")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    make_networks(given.folder)
    for state in ("interrupted", "finished"):
        place = given.folder / state
        place.mkdir(exist_ok=True)
        for network in given.folder.glob("*.safetensors"):
            shutil.copy(network, place)
        for name in given.only:
            if state in RUNS[name]["kept"]:
                make(name, place, state == "interrupted")
        for network in place.glob("*.safetensors"):
            network.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
