"""InferenceNet: a BlobNet as it is served, and the devices around it.

Weights are folded and cast once and enter each call as arguments, so that a swap changes the whole
list between two batches and no batch sees a mixture. Products of the blocks run in the chosen
precision; residual stream, normalisation, heads and softmax in float32. The compiled callable, one for
batches of any size, comes from compile_net.py; until it is there the same function runs eagerly.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import math
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shmzero import _core
from shmzero.config import NetConfig
from shmzero.errors import ConfigError, ModelFailed, NotCompiled
from shmzero.evaluators import BatchDevice, Staging, new_staging
from shmzero.net import BlobNet, check_searchable, load_checkpoint, masked_softmax
from shmzero.segment import nameless_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_ROWS = 1 << 22
"""The most rows that a batch may have."""
CUDA_BUCKETS = (64, 256, 1024, 4096, 8192, 16384)
"""Batch sizes that a CUDA graph is captured for. A CPU has no graphs."""
PAD_ROWS_TO = 8
PAD_FROM_ROWS = 128
"""A CPU's batches in bfloat16 of more rows than PAD_FROM_ROWS are padded to a multiple of PAD_ROWS_TO: oneDNN makes a
kernel for each number of rows that it meets, and one that is no multiple of its tile costs a tenth of the rate."""
LOOK_S = 0.5
"""How often a server looks whether the compiled callable is there."""
COMPILE_AFTER_S = 2.0
"""How long after its start a server starts the compile helper. Until then a run's first rounds have the cores."""
COMPILE_BYTES = 32 << 20
"""Room that a compilation may need in the cache folder."""
CUDA_PACKAGES_FROM = (2, 13)
"""The first torch that loads a CUDA package from a folder that it is given."""
LOCK = "shmzero.lock"
"""A file in the cache folder, locked by the compile helper at work."""

Callable3 = Callable[..., tuple[Tensor, Tensor]]


def cpu_flags() -> set[str]:
    """Instruction sets of this CPU, as the kernel names them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware. It may still do so more slowly than fp32."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


@cache
def bf16_is_faster() -> bool:
    """Whether a matrix product of a batch takes less time in bfloat16 than in fp32 on this CPU; tried, 20 ms.

    What the kernel says is not enough: a virtual machine may hide AMX, and what is left of bfloat16
    on such a CPU has half the rate of its fp32.
    """
    if not cpu_has_bf16():
        return False
    x, weight = (torch.ones(rows, 256, dtype=torch.float32, device="cpu") for rows in (256, 1024))
    operands = [(x.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    shortest = [math.inf, math.inf]
    for _ in range(8):
        for i, pair in enumerate(operands):
            start = time.perf_counter()
            F.linear(*pair)
            shortest[i] = min(shortest[i], time.perf_counter() - start)
    return shortest[1] < shortest[0]


def resolve_precision(precision: str, device: str) -> str:
    """`auto`: fp16 on CUDA; on a CPU bf16 where it is faster than fp32."""
    if precision != "auto":
        return precision
    if device != "cpu":
        return "fp16"
    return "bf16" if bf16_is_faster() else "fp32"


class InferenceNet:
    """The serving function of a NetConfig in one precision: weights in, nothing kept."""

    def __init__(self, config: NetConfig, precision: str, values: bool = True) -> None:
        """`values`: false where nobody reads them, which saves the trunk that they alone need; they are then 0."""
        self.config = config
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.trunks = config.trunks if values else 1

    def weights(self, net: BlobNet, device: str = "cpu") -> list[Tensor]:
        """A network's weights as `__call__` takes them. The input scale is folded in, products cast."""
        named = {name: t.detach().to(device) for name, t in net.state_dict().items()}
        out: list[Tensor] = []
        for t in range(self.trunks):
            out.append((named[f"inputs.{t}.weight"] * named["input_scale"]).to(self.dtype))
            out.append(named[f"inputs.{t}.bias"].to(self.dtype))
            for b in range(self.config.blocks):
                at = f"trunks.{t}.{b}."
                for layer in ("mix", "up", "down"):
                    out.append(named[f"{at}{layer}.weight"].to(self.dtype))
                    out.append(named[f"{at}{layer}.bias"].to(self.dtype))
                for norm in ("norm1", "norm2"):
                    out += [named[f"{at}{norm}.weight"].float(), named[f"{at}{norm}.bias"].float()]
        for head in ("bids", "cards", "value"):
            out += [named[f"{head}.weight"].float(), named[f"{head}.bias"].float()]
        return [t.contiguous() for t in out]

    def __call__(self, features: Tensor, masks: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """(policies [B, 52], values [B, 1]) of features [B, 256] f16 and masks [B] int64 words."""
        left = iter(weights)
        width = self.config.width

        def product(x: Tensor) -> Tensor:
            return F.linear(x.to(self.dtype), next(left), next(left))

        def normalised(x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
            return F.layer_norm(x, (width,), norm[0], norm[1])

        streams = []
        for _ in range(self.trunks):
            x = product(features).float()
            for _ in range(self.config.blocks):
                mix, up, down = [(next(left), next(left)) for _ in range(3)]
                norm1, norm2 = [(next(left), next(left)) for _ in range(2)]
                x = normalised(x + F.linear(x.to(self.dtype), *mix).float(), norm1)
                h = F.relu(F.linear(x.to(self.dtype), *up))
                x = normalised(x + F.linear(h, *down).float(), norm2)
            streams.append(x)
        bids, cards, value = [(next(left), next(left)) for _ in range(3)]
        playing = features[:, _core.PLAYING_FEATURE, None] > 0.5
        logits = torch.where(playing, F.linear(streams[0], *cards), F.linear(streams[0], *bids))
        places = torch.arange(_core.NUM_ACTIONS, device=masks.device)
        legal = ((masks[:, None] >> places) & 1).bool()
        policies = masked_softmax(logits, legal)
        if self.trunks < self.config.trunks:
            return policies, torch.zeros_like(policies[:, :1])
        return policies, F.linear(streams[-1], *value)


# --- the cache of compiled callables --------------------------------------------------------------


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


def _is_cached(path: Path) -> bool:
    """Whether a package is there, in a folder that this user alone can write to. Raises NotCompiled for any other."""
    try:
        _check_ours(path.parent, path.parent.stat())
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise NotCompiled(f"the cache {path.parent} cannot be read ({error.strerror})") from None
    return True


def load_package(path: Path, device: str, weights: list[Tensor]) -> Callable3:
    """The callable of a cached package, after a first call with `weights` and two rows. Raises NotCompiled.

    The package is unpacked to a new folder that only this user can open, inside the temporary folder (TMPDIR).
    That folder is removed as soon as the package is loaded: what is mapped stays mapped. So a process that is
    killed leaves nothing behind, unless it is killed during these few milliseconds. The first call comes before
    that because CUDA kernels are read from their files when they are first called.
    """
    # The C++ loaders themselves: their public face, torch._inductor.aoti_load_package, first imports Inductor,
    # which takes two seconds, and flattens the arguments of every call. The loader of packages takes a folder from
    # torch 2.13 on; older ones unpack to a folder whose name they do not tell. A CPU's library can be loaded
    # without it. On CUDA it is needed: it alone can run without the locks that a graph cannot capture.
    rows = [
        torch.zeros(2, _core.NUM_FEATURES, dtype=torch.float16, device=weights[0].device),
        torch.ones(2, dtype=torch.int64, device=weights[0].device),
    ]
    runner: Any
    try:
        with (
            path.open("rb") as file,
            tempfile.TemporaryDirectory(prefix="shmzero-", ignore_cleanup_errors=True) as folder,
        ):
            _check_ours(path, os.fstat(file.fileno()))
            with zipfile.ZipFile(file) as package:
                package.extractall(folder)  # which compares the checksums
            if device == "cpu":
                (library,) = Path(folder).glob("*/data/aotinductor/model/*.so")
                runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
            else:
                runner = torch._C._aoti.AOTIModelPackageLoader(folder, "model", True, 1, -1)
            with torch.inference_mode():
                runner.run([*rows, *weights])
    except OSError as error:
        raise NotCompiled(f"{path} cannot be unpacked to be loaded ({error})") from None
    except (RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise NotCompiled(
            f"{path} cannot be loaded ({_last_line(str(error))}); without it, it is compiled anew"
        ) from None

    def call(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        policies, values = runner.run(list(arguments))
        return policies, values

    return call


def start_compiler(
    net: InferenceNet, device: str, said: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes] | None:
    """Start the helper that fills the cache. It dies with the calling thread; `said` gets its stderr.

    None where the cache is filled already, or while the helper of another process is at work in it: of all the
    processes that share a cache one compiles at a time. The lock is the helper's for as long as it lives.
    Raises NotCompiled where it cannot be started.
    """
    path = package_path(net, device)
    spec = {"net": asdict(net.config), "precision": net.precision, "values": net.trunks == net.config.trunks,
            "device": device, "parent_pid": os.getpid(), "inductor": str(path.with_name("inductor"))}  # fmt: skip
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ours(path.parent, path.parent.stat())
        if (free := shutil.disk_usage(path.parent).free) < COMPILE_BYTES:
            raise NotCompiled(
                f"the disk of the cache {path.parent} has {free >> 20} MiB left, compiling needs "
                f"{COMPILE_BYTES >> 20}; make room or name another folder in SHMZERO_CACHE"
            )
        lock = os.open(path.parent / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotCompiled(
            f"the cache {path.parent} cannot be written ({error.strerror}); name another folder in SHMZERO_CACHE"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise NotCompiled(
            f"the cache {path.parent} cannot be locked ({error.strerror}); name another folder in SHMZERO_CACHE"
        ) from None
    try:
        if _is_cached(path):
            return None
        return subprocess.Popen(
            [sys.executable, "-m", "shmzero.compile_net", json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=[lock],
        )
    except OSError as error:
        raise NotCompiled(f"the compile helper cannot be started ({error.strerror})") from None
    finally:
        os.close(lock)


# --- devices ----------------------------------------------------------------------------------------


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


class _NetDevice:
    """What CPU and CUDA share: weights, and the callable that serves."""

    def __init__(
        self, net: BlobNet, device: str, precision: str, compiled: bool, max_batch: int, searched: bool | None
    ) -> None:
        """`searched`: whether a search reads the values. If not they are left out; if so, of games they are refused;
        None where anything may be asked."""
        self.max_batch = max_batch
        self._searched = searched
        self.device = device
        self.inference_net = InferenceNet(net.config, resolve_precision(precision, device), searched is not False)
        self.weights = self.inference_net.weights(net, device)
        self._other: tuple[InferenceNet, list[Tensor]] | None = None
        self.compiled: Callable3 | None = None
        self._package: Path | None = None
        self._began_at = self._looked_at = time.monotonic()
        self._compiler: subprocess.Popen[bytes] | None = None
        how = "eagerly"
        if compiled:
            self._said = os.fdopen(nameless_file("shmzero-stderr"), "w+b")
            try:
                if device != "cpu" and _torch_version() < CUDA_PACKAGES_FROM:
                    raise NotCompiled(f"torch {torch.__version__} cannot load it on CUDA, torch 2.13 can")
                self._package = package_path(self.inference_net, device)
                how = "compiled" if self._load_package() else "eagerly until its compiled form is ready"
            except NotCompiled as error:
                self._package = None
                how = f"eagerly: {error}"
        self.description = f"{device} {self.inference_net.precision}, {how}"

    @property
    def compiling(self) -> bool:
        """Whether a compiled callable may still appear."""
        return self._package is not None

    def _load_package(self) -> bool:
        """Take up the compiled callable where it is in the cache. Raises NotCompiled where it cannot be used."""
        if self._package is None or not _is_cached(self._package):
            return False
        self.compiled = load_package(self._package, self.device, self.weights)
        self._package = None
        return True

    def poll(self) -> str | None:
        """Takes up the compiled callable once it has appeared in the cache, and has it made if nobody else does."""
        now = time.monotonic()
        if self._package is None or now - self._looked_at < LOOK_S:
            return None
        self._looked_at = now
        try:
            ended = self._compiler is not None and self._compiler.poll() is not None
            if self._load_package():
                clock, seconds = time.strftime("%H:%M:%S"), now - self._began_at
                return f"serves the compiled network from {clock} on, {seconds:.0f} s after it began to serve"
            if ended:
                assert self._compiler is not None
                self._said.seek(0)
                words = _last_line(self._said.read().decode(errors="replace")) or "it said nothing"
                raise NotCompiled(f"the compile helper ended with status {self._compiler.returncode} ({words})")
            if self._compiler is None and now - self._began_at >= COMPILE_AFTER_S:
                self._compiler = start_compiler(self.inference_net, self.device, self._said)
        except NotCompiled as error:
            self._package = None
            return f"serves eagerly: {error}"
        return None

    def new_weights(self, path: str) -> list[Tensor]:
        """A checkpoint's weights for this network. Raises ConfigError where it is another one."""
        net = load_checkpoint(path)
        if self._searched:
            check_searchable(path)
        if net.config != self.inference_net.config:
            raise ConfigError(
                f"checkpoint {path} is a network of other sizes ({net.config}); "
                f"this run serves {self.inference_net.config}"
            )
        return self.inference_net.weights(net, self.device)


    def seat_other(self, path: str) -> None:
        """Have this checkpoint's network, of any sizes, answer the rows whose mask has bit 63 set."""
        net = load_checkpoint(path)
        serving = InferenceNet(net.config, self.inference_net.precision)
        self._other = serving, serving.weights(net, self.device)

    def _answer_others(
        self, places: Tensor, features: Tensor, masks: Tensor, policies: Tensor, values: Tensor
    ) -> None:
        """Put the other network's answers in `places`. Until there is one, they keep this one's."""
        if self._other is None or not len(places):
            return
        net, weights = self._other
        found = net(features[places], masks[places], *weights)
        policies.index_copy_(0, places, found[0])
        values.index_copy_(0, places, found[1])


class CpuNetDevice(_NetDevice):
    """Runs a batch at once, in the calling thread and torch's own."""

    num_stages = 1

    def __init__(
        self,
        net: BlobNet,
        precision: str = "auto",
        compiled: bool = True,
        max_batch: int = 512,
        searched: bool | None = None,
    ) -> None:
        super().__init__(net, "cpu", precision, compiled, max_batch, searched)
        self._staging = new_staging(max_batch)
        self._features = torch.from_numpy(self._staging.features)
        self._masks = torch.from_numpy(self._staging.masks.view("int64"))
        self._policies = torch.from_numpy(self._staging.policies)
        self._values = torch.from_numpy(self._staging.values)

    def staging(self, stage: int) -> Staging:
        return self._staging

    def launch(self, stage: int, rows: int) -> None:
        call: Callable3 = self.compiled or self.inference_net
        padded = rows
        if rows > PAD_FROM_ROWS and self.inference_net.dtype == torch.bfloat16:
            padded = min(-(-rows // PAD_ROWS_TO) * PAD_ROWS_TO, self.max_batch)  # with rows of an earlier batch
        try:
            with torch.inference_mode():
                policies, values = call(self._features[:padded], self._masks[:padded], *self.weights)
                self._policies[:rows].copy_(policies[:rows])
                self._values[:rows].copy_(values[:rows])
                places = (self._masks[:rows] < 0).nonzero()[:, 0]  # bit 63 is the sign
                self._answer_others(places, self._features, self._masks, self._policies, self._values)
        except RuntimeError as error:
            raise ModelFailed(f"a batch of {rows} rows failed on the CPU: {error}") from error

    def finished(self, stage: int) -> bool:
        return True

    def wait(self, stage: int) -> None:
        pass

    def swap(self, path: str) -> None:
        self.weights = self.new_weights(path)


class CudaNetDevice(_NetDevice):
    """Two batches in flight, each with a stream, static buffers and a graph per bucket of its own."""

    num_stages = 2

    def __init__(
        self,
        net: BlobNet,
        device: str = "cuda:0",
        precision: str = "auto",
        compiled: bool = True,
        max_batch: int = 8192,
        searched: bool | None = None,
    ) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(f"device is {device!r}, and torch sees no CUDA here; allowed: cpu")
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"device is {device!r}; allowed: cuda:0 to cuda:{torch.cuda.device_count() - 1}"
            )
        torch.cuda.set_device(index)
        torch.set_float32_matmul_precision("high")  # TF32
        super().__init__(net, device, precision, compiled, max_batch, searched)
        self.buckets = [b for b in CUDA_BUCKETS if b < max_batch] + [max_batch]
        self._stages = [_CudaStage(device, max_batch) for _ in range(self.num_stages)]

    def staging(self, stage: int) -> Staging:
        return self._stages[stage].staging

    def launch(self, stage: int, rows: int) -> None:
        at = self._stages[stage]
        bucket = next(b for b in self.buckets if b >= rows)  # padding rows hold an earlier batch's
        call: Callable3 = self.compiled or self.inference_net
        try:
            graph = at.graph(bucket, call, self.weights)
            with torch.cuda.stream(at.stream):
                at.features[:bucket].copy_(at.host_features[:bucket], non_blocking=True)
                at.masks[:bucket].copy_(at.host_masks[:bucket], non_blocking=True)
                graph.replay()
                if self._other is not None:
                    places = (at.host_masks[:rows] < 0).nonzero()[:, 0].to(self.device)
                    with torch.inference_mode():
                        self._answer_others(places, at.features, at.masks, at.policies, at.values)
                at.host_policies[:rows].copy_(at.policies[:rows], non_blocking=True)
                at.host_values[:rows].copy_(at.values[:rows], non_blocking=True)
                at.done.record(at.stream)
        except RuntimeError as error:
            raise ModelFailed(f"a batch of {rows} rows failed on {self.device}: {error}") from error

    def finished(self, stage: int) -> bool:
        return bool(self._stages[stage].done.query())  # type: ignore[no-untyped-call]

    def wait(self, stage: int) -> None:
        self._stages[stage].done.synchronize()

    def swap(self, path: str) -> None:
        # The graphs read these very buffers; the caller has nothing in flight.
        new = self.new_weights(path)
        torch.cuda.synchronize()
        for old, fresh in zip(self.weights, new, strict=True):
            old.copy_(fresh)
        torch.cuda.synchronize()


class _CudaStage:
    """Static buffers of one batch in flight. Graphs are captured on the serving thread."""

    def __init__(self, device: str, max_batch: int) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        shapes = [
            ((max_batch, _core.NUM_FEATURES), torch.float16),
            ((max_batch,), torch.int64),
            ((max_batch, _core.NUM_ACTIONS), torch.float32),
            ((max_batch, 1), torch.float32),
        ]
        host = [torch.zeros(shape, dtype=dtype, device="cpu").pin_memory() for shape, dtype in shapes]
        self.host_features, self.host_masks, self.host_policies, self.host_values = host
        self.features, self.masks, self.policies, self.values = (
            torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes
        )
        self.staging = Staging(
            self.host_features.numpy(),
            self.host_masks.numpy().view("uint64"),
            self.host_policies.numpy(),
            self.host_values.numpy(),
        )
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    def graph(self, bucket: int, call: Callable3, weights: list[Tensor]) -> torch.cuda.CUDAGraph:
        """The graph of a bucket and callable, captured on first use."""
        key = (bucket, id(call))
        if key not in self._graphs:

            def body() -> None:
                policies, values = call(self.features[:bucket], self.masks[:bucket], *weights)
                self.policies[:bucket].copy_(policies)
                self.values[:bucket].copy_(values)

            with torch.inference_mode():
                torch.cuda.synchronize()
                with torch.cuda.stream(self.stream):
                    for _ in range(3):  # libraries allocate their workspaces before the capture
                        body()
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream):
                    body()
                torch.cuda.synchronize()
            self._graphs[key] = graph
        return self._graphs[key]


def make_net_device(spec: dict[str, Any]) -> BatchDevice:
    """The device of an inference process: its checkpoint's network, or a fresh one from the seed."""
    torch.set_num_threads(spec["threads"])
    searched = spec.get("searched")
    if spec["checkpoint"]:
        net = load_checkpoint(spec["checkpoint"])
        if searched:
            check_searchable(spec["checkpoint"])
    else:
        net = BlobNet(NetConfig(**spec["net"]), seed=spec["seed"])
    device: CpuNetDevice | CudaNetDevice
    how = (spec["precision"], spec["compile"], spec["max_batch"], searched)
    device = CpuNetDevice(net, *how) if spec["device"] == "cpu" else CudaNetDevice(net, spec["device"], *how)
    if spec.get("other"):
        device.seat_other(spec["other"])
    return device
