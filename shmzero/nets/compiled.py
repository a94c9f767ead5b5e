"""The cache of compiled serving functions: where a package lies, who may have written it, how it is loaded.

The compiled callable, one for batches of any size, comes from compile.py; until it is there the same
function runs eagerly. Read next: inference/compilation.py, which takes it up while batches run.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from shmzero import _core
from shmzero.errors import NotCompiled
from shmzero.nets.inference_net import InferenceNet
from shmzero.nets.masks import masked_softmax
from shmzero.nets.precision import cpu_flags

MOST_ROWS = 1 << 22
"""The most rows that a batch may have."""
COMPILE_BYTES = 32 << 20
"""Room that a compilation may need in the cache folder."""
CUDA_PACKAGES_FROM = (2, 13)
"""The first torch that loads a CUDA package from a folder that it is given."""
LOCK = "shmzero.lock"
"""A file in the cache folder, locked by the compile helper at work."""

ServingFunction = Callable[..., tuple[Tensor, Tensor]]
"""(policies, values) of (features, masks, *weights): an InferenceNet, or its compiled form."""


def cache_folder() -> Path:
    """SHMZERO_CACHE, or shmzero in the user's cache folder. Raises NotCompiled where there is none."""
    if given := os.environ.get("SHMZERO_CACHE"):
        return Path(given).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # its specification has any other value ignored
        return base / "shmzero"
    home = Path(os.environ.get("HOME", ""))
    if not home.is_absolute():
        try:
            home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        except KeyError:
            raise NotCompiled(
                f"HOME is not set and user {os.getuid()} has no home folder to keep it in; "
                "name a folder of yours in SHMZERO_CACHE"
            ) from None
    return home / ".cache" / "shmzero"


def package_path(net: InferenceNet, device: str) -> Path:
    """The path under which a serving function's callable is cached. Its name changes with whatever it was made from.

    Raises NotCompiled where there is no cache folder.
    """
    kind = "cpu" if device == "cpu" else "cuda"
    machine = sorted(cpu_flags()) if kind == "cpu" else torch.cuda.get_device_capability(device)
    parts = [asdict(net.config), net.trunks, net.precision, kind, MOST_ROWS, torch.__version__, str(machine)]
    sources = [inspect.getsource(part) for part in (InferenceNet, masked_softmax)]
    made_from = json.dumps([*parts, *sources]).encode()
    return cache_folder() / f"{hashlib.sha256(made_from).hexdigest()[:24]}-{kind}-{net.precision}.pt2"


def _check_ours(path: Path, found: os.stat_result) -> None:
    """Raises NotCompiled unless this user alone can have written what `found` describes: it is run as code."""
    if found.st_uid != os.geteuid():
        raise NotCompiled(
            f"{path} belongs to user {found.st_uid}, and what it holds would run as user {os.geteuid()}; "
            "name a folder of your own in SHMZERO_CACHE"
        )
    if found.st_mode & 0o022:
        raise NotCompiled(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):o}), and what it holds is run; "
            "remove it, or take their permission away with chmod go-w"
        )


def is_cached(path: Path) -> bool:
    """Whether a package is there, in a folder that this user alone can write to. Raises NotCompiled for any other."""
    try:
        _check_ours(path.parent, path.parent.stat())
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise NotCompiled(f"the cache {path.parent} cannot be read ({error.strerror})") from None
    return True


def load_package(path: Path, device: str, weights: list[Tensor]) -> ServingFunction:
    """The callable of a cached package, after a first call with `weights` and two rows. Raises NotCompiled.

    The package is unpacked to a new folder that only this user can open, inside the temporary folder (TMPDIR).
    That folder is removed as soon as the package is loaded: what is mapped stays mapped. So a process that is
    killed leaves nothing behind, unless it is killed during these few milliseconds. The first call comes before
    that because CUDA kernels are read from their files when they are first called.
    """
    rows = [
        torch.zeros(2, _core.NUM_FEATURES, dtype=torch.float16, device=weights[0].device),
        torch.ones(2, dtype=torch.int64, device=weights[0].device),
    ]
    try:
        with (
            path.open("rb") as file,
            tempfile.TemporaryDirectory(prefix="shmzero-", ignore_cleanup_errors=True) as folder,
        ):
            _check_ours(path, os.fstat(file.fileno()))
            with zipfile.ZipFile(file) as package:
                package.extractall(folder)  # which compares the checksums
            runner = _runner(Path(folder), device)
            with torch.inference_mode():
                runner.run([*rows, *weights])
    except OSError as error:
        raise NotCompiled(f"{path} cannot be unpacked to be loaded ({error})") from None
    except (RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise NotCompiled(
            f"{path} cannot be loaded ({last_line(str(error))}); without it, it is compiled anew"
        ) from None

    def call(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        policies, values = runner.run(list(arguments))
        return policies, values

    return call


def _runner(folder: Path, device: str) -> Any:
    """What runs the package that is unpacked in a folder."""
    # The C++ loaders themselves: their public face, torch._inductor.aoti_load_package, first imports Inductor,
    # which takes two seconds, and flattens the arguments of every call. The loader of packages takes a folder from
    # torch 2.13 on; older ones unpack to a folder whose name they do not tell. A CPU's library can be loaded
    # without it. On CUDA it is needed: it alone can run without the locks that a graph cannot capture.
    if device == "cpu":
        (library,) = folder.glob("*/data/aotinductor/model/*.so")
        return torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    return torch._C._aoti.AOTIModelPackageLoader(str(folder), "model", True, 1, -1)


def start_compiler(
    net: InferenceNet, device: str, stderr: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes] | None:
    """Start the helper that fills the cache. It dies with the calling thread.

    None where the cache is filled already, or while the helper of another process is at work in it: of all the
    processes that share a cache one compiles at a time. The lock is the helper's for as long as it lives.
    Raises NotCompiled where it cannot be started.
    """
    path = package_path(net, device)
    spec = {"net": asdict(net.config), "precision": net.precision, "values": net.trunks == net.config.trunks,
            "device": device, "parent_pid": os.getpid(), "inductor": str(path.with_name("inductor"))}  # fmt: skip
    lock = _try_lock(path.parent)
    if lock is None:
        return None
    try:
        if is_cached(path):
            return None
        return subprocess.Popen(
            [sys.executable, "-m", "shmzero.nets.compile", json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[lock],
        )
    except OSError as error:
        raise NotCompiled(f"the compile helper cannot be started ({error.strerror})") from None
    finally:
        os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a cache folder, which is made where there is none.

    None where another process holds it. Raises NotCompiled where nothing can be written there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ours(folder, folder.stat())
        if (free := shutil.disk_usage(folder).free) < COMPILE_BYTES:
            raise NotCompiled(
                f"the disk of the cache {folder} has {free >> 20} MiB left, compiling needs "
                f"{COMPILE_BYTES >> 20}; make room or name another folder in SHMZERO_CACHE"
            )
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotCompiled(
            f"the cache {folder} cannot be written ({error.strerror}); name another folder in SHMZERO_CACHE"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise NotCompiled(
            f"the cache {folder} cannot be locked ({error.strerror}); name another folder in SHMZERO_CACHE"
        ) from None
    return lock


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return text.strip().rpartition("\n")[2]


def torch_version() -> tuple[int, ...]:
    """(major, minor) of torch."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2])
