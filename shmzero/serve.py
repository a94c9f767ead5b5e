"""The command `python -m shmzero.serve`: an InferenceServer in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shmzero import _core
from shmzero.command import (
    Interrupt,
    end_at_interrupt,
    file_stamp,
    parse_flags,
    print_result,
    put_stdout_aside,
    run_command,
)
from shmzero.config import (
    NETS,
    SERVICE_LIMITS,
    NetName,
    check_cuda,
    check_service,
    check_whole,
    cores,
    has_cuda,
)
from shmzero.errors import ConfigError, ServerGone
from shmzero.inference import take_up
from shmzero.model import device_of
from shmzero.segment import service_path
from shmzero.server import InferenceServer, check_sizes, percentile_us

EXAMPLES = """Examples:
  python -m shmzero.serve
  python -m shmzero.serve --name mine --model my_nets:make --state-dim 40 --action-dim 7 --value-dim 3 --stats

In any program:
  policies, values = shmzero.Client("mine").evaluate_many(states, masks)"""
STATS_S = 1.0
FOLLOW_S = 0.5
SWAP_S = 10.0
"""How long --follow waits for new weights to be taken up before it says so and tries again."""


@dataclass(frozen=True)
class ServeConfig:
    """A service. No setting is required: without --model it serves Blob's own network."""

    name: str = "blob"
    """The name that clients ask for."""
    model: str | None = None
    """module:factory; factory() returns a torch module, or a numpy function, that maps (states, masks) to
    (policies, values). A module is served itself, not a copy of it."""
    grad: bool = False
    """Let the model take gradients within a call."""
    check_finite: bool = True
    """Fail a request whose answer holds NaN or infinity; otherwise such answers are handed out."""
    net: NetName = "plan"
    """Sizes of Blob's own network where it is fresh."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of Blob's own network."""
    compile: bool = True
    """Serve Blob's own network compiled as soon as it is ready."""
    state_dim: int = _core.NUM_FEATURES
    """Width of a state."""
    action_dim: int = _core.NUM_ACTIONS
    """Width of a mask and of a policy."""
    value_dim: int = 1
    """Width of a value."""
    wire: Literal["float32", "float16"] | None = None
    """How states travel (default: float32; float16 for Blob's own network, which loses nothing)."""
    weights: Path | None = None
    """Weights of the model (.safetensors; a checkpoint for Blob's own network)."""
    follow: bool = False
    """Take up the weights file's new content whenever it is replaced."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """torch's threads on a CPU (default: the cores less one)."""
    max_batch: int = 1024
    """Rows of a batch at most."""
    timeout_ms: float = 2.0
    """A batch waits no longer than this for further rows."""
    slots: int = 128
    """Requests at once, over all clients."""
    rows_per_slot: int = 128
    """Rows of a request; larger ones are split."""
    spin_us: float | None = None
    """How long the server spins at most before it sleeps (default: 50 where there is more than one core)."""
    stats: bool = False
    """Show rows/s, batches, waiting times and clients, live."""
    json: bool = False
    """Print one JSON object at the end and nothing else on standard output."""

    def wire_type(self) -> str:
        """How states travel."""
        return self.wire or ("float32" if self.model else "float16")

    def check(self) -> None:
        """Raises ConfigError for a setting that cannot be."""
        service_path(self.name)
        if self.threads is not None:
            check_whole("--threads", self.threads, 1, 1024)
        for name in SERVICE_LIMITS:
            check_service(name, getattr(self, name), f"--{name.replace('_', '-')}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"--device is {self.device!r}; allowed: auto, cpu, cuda, cuda:1")
        check_cuda("--device", self.device, [self.device])
        if self.follow and self.weights is None:
            raise ConfigError("--follow needs --weights FILE, the file to follow")


def load_model(text: str) -> Any:
    """The model that the factory of "module:factory" makes. Raises ConfigError where there is none."""
    module_name, colon, factory_name = text.partition(":")
    if not colon or not module_name or not factory_name:
        raise ConfigError(f"--model is {text!r}; it is written module:factory")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"--model {text}: module {module_name} cannot be imported: {error}") from None
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ConfigError(f"--model {text}: {module_name} has no function {factory_name}")
    return factory()


def load_device(config: ServeConfig) -> Any:
    """The BatchDevice of these settings, with the weights to begin with. Runs the user's code and nothing of ours
    that has to be cleared away."""
    threads = config.threads or max(cores() - 1, 1)
    wire = config.wire_type()
    widths = (config.state_dim, config.action_dim, config.value_dim)
    if config.model:
        model = load_model(config.model)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    else:
        model = blob_device(config, threads)
        if widths != (_core.NUM_FEATURES, _core.NUM_ACTIONS, 1) or wire != "float16":
            raise ConfigError("Blob's own network has its own widths and wire; other ones need --model module:factory")
    check_sizes(config.slots, config.rows_per_slot, *widths, wire)
    device = device_of(model, *widths, wire, config.max_batch, config.device, copy=False, grad=config.grad)
    if config.model and config.weights:
        take_up(device, config.weights)  # before anybody is answered
    return device


def make_server(config: ServeConfig, device: Any) -> InferenceServer:
    """The server of these settings, serving what `load_device` has made."""
    widths = (config.state_dim, config.action_dim, config.value_dim)
    return InferenceServer(
        device, *widths, device=config.device, name=config.name, wire=config.wire_type(), max_batch=config.max_batch,
        slots=config.slots, rows_per_slot=config.rows_per_slot, timeout_ms=config.timeout_ms,
        spin_us=config.spin_us, check_finite=config.check_finite,
    )  # fmt: skip


def blob_device(config: ServeConfig, threads: int) -> Any:
    """Blob's network as the engine serves it: chosen precision, compiled where possible."""
    from dataclasses import asdict

    from shmzero.evaluators import make_device

    device = config.device
    if device == "auto":
        device = "cuda:0" if has_cuda() else "cpu"
    return make_device(
        {
            "evaluator": "net",
            "device": "cuda:0" if device == "cuda" else device,
            "precision": config.precision,
            "compile": config.compile,
            "max_batch": config.max_batch,
            "threads": threads,
            "net": asdict(NETS[config.net]),
            "checkpoint": str(config.weights) if config.weights else None,
            "seed": 0,
        }
    )


class Meter:
    """Rates between two looks at a server."""

    def __init__(self, server: InferenceServer) -> None:
        self._server = server
        self._last = server.stats()
        self._at = time.monotonic()

    def lines(self) -> list[str]:
        """Lines about what happened since the last call, the most important first; each part fits a terminal's line."""
        now, stats = time.monotonic(), self._server.stats()
        seconds = max(now - self._at, 1e-9)
        rows, batches = (stats[k] - self._last[k] for k in ("rows", "batches"))
        waits = [new - old for new, old in zip(stats["waits"], self._last["waits"], strict=True)]
        sizes = {
            size: count - self._last["batch_histogram"].get(size, 0)
            for size, count in stats["batch_histogram"].items()
        }
        self._last, self._at = stats, now
        return [
            f"{rows / seconds:,.0f} rows/s, {batches / seconds:,.0f} batches/s",
            f"wait p50 {percentile_us(waits, 0.5):,.0f} us, p99 {percentile_us(waits, 0.99):,.0f} us",
            f"{stats['clients']} clients, weights {stats['version']}"
            + (f", {stats['failures']} failed batches" if stats["failures"] else ""),
            "batches of rows: " + (", ".join(f"{n} of {size}+" for size, n in sizes.items() if n) or "none"),
        ]


def run(config: ServeConfig, stop: threading.Event | None = None) -> dict[str, Any]:
    """Serve until `stop`, or else until an Interrupt; returns the sums. Says what happens on standard error.

    An Interrupt is made when the model is there: it leaves the signals alone as long as that is loaded.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    seen, failures = file_stamp(config.weights), 0  # before they are read: a replacement is never missed
    device = load_device(config)
    until = stop or Interrupt()
    with make_server(config, device) as server:
        say(f"serving {server.name!r}: {getattr(server.device, 'description', config.model)}")
        start = looked_at = time.monotonic()
        meter = Meter(server)
        live = Live(console=console, auto_refresh=False) if config.stats and console.is_terminal else None
        if live:
            live.start()
        try:
            while not until.wait(FOLLOW_S):
                if server.error is not None:
                    raise ServerGone(f"the server ended:\n{server.last_failure}")
                while server.events:
                    say(server.events.popleft())
                stats = server.stats()
                if stats["failures"] > failures:
                    failures = stats["failures"]
                    say(f"the model failed: {server.last_failure}")
                if config.follow and (stamp := file_stamp(config.weights)) != seen:
                    try:
                        say(f"serving weights {server.swap(config.weights, SWAP_S)}")
                        seen = stamp
                    except ConfigError as error:
                        say(f"kept the old weights: {error}")
                        seen = stamp
                    except TimeoutError as error:
                        say(f"still the old weights, trying again: {error}")
                if config.stats and time.monotonic() - looked_at >= STATS_S:
                    looked_at = time.monotonic()
                    if live:
                        live.update(Text("\n".join(meter.lines())), refresh=True)
                    else:
                        say("; ".join(meter.lines()))
        finally:
            if live:
                live.stop()
        stats = server.stats()
        del stats["waits"]
        return {"name": server.name, "seconds": time.monotonic() - start} | stats


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    import tyro

    config = parse_flags(
        ServeConfig,
        prog="python -m shmzero.serve",
        description="Serves a model to every program of this machine over shared memory. Ctrl-C ends it.\n\n"
        + EXAMPLES,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config.check()
    put_stdout_aside()
    end_at_interrupt()
    summary = run(config)
    if config.json:
        print_result(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
