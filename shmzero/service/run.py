"""The service of a command: the model of its settings, its weights, what it says."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from typing import Any

from shmzero.cli.interrupts import Interrupt
from shmzero.errors import ConfigError, ServerGone
from shmzero.files import file_stamp
from shmzero.inference.device import BatchDevice
from shmzero.inference.factory import make_net_device
from shmzero.inference.loop import take_up
from shmzero.inference.messages import DeviceSpec
from shmzero.inference.model_factory import make_model_device
from shmzero.nets.config import NETS
from shmzero.service.config import ServeConfig
from shmzero.service.server import InferenceServer
from shmzero.service.stats import percentile_us
from shmzero.shm.sizes import ENGINE_WIDTHS

STATS_S = 1.0
"""How often rates are shown."""
FOLLOW_S = 0.5
"""How often the attendant looks at the server and at the weights file."""
SWAP_S = 10.0
"""How long --follow waits for new weights to be taken up before it says so and tries again."""


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


def load_device(config: ServeConfig) -> BatchDevice:
    """The BatchDevice of settings that are resolved, with the weights to begin with.

    It runs the user's code and nothing of ours that has to be cleared away. Raises ConfigError.
    """
    widths = config.model.widths()
    if config.model.model:
        model = load_model(config.model.model)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(config.threads)
    else:
        model = blob_device(config)
        if widths != ENGINE_WIDTHS:
            raise ConfigError("Blob's own network has its own widths and wire; other ones need --model module:factory")
    options = config.options()
    device = make_model_device(model, widths, options.max_batch, config.device, copy=False, grad=config.model.grad)
    if config.model.model and config.net.checkpoint:
        take_up(device, config.net.checkpoint)  # before anybody is answered
    return device


def make_server(config: ServeConfig, device: BatchDevice) -> InferenceServer:
    """The server of these settings, serving what `load_device` has made."""
    options = config.options()
    state_dim, action_dim, value_dim, wire = options.widths
    return InferenceServer(
        device, state_dim, action_dim, value_dim, device=config.device, name=config.name, wire=wire,
        max_batch=options.max_batch, slots=options.slots, rows_per_slot=options.rows_per_slot,
        timeout_ms=options.timeout_ms, spin_us=options.spin_us, check_finite=options.check_finite,
    )  # fmt: skip


def blob_device(config: ServeConfig) -> BatchDevice:
    """Blob's network as the engine serves it: chosen precision, compiled where possible."""
    assert config.threads is not None  # the settings are resolved
    return make_net_device(
        DeviceSpec(
            device=config.device,
            max_batch=config.options().max_batch,
            threads=config.threads,
            precision=config.batches.precision,
            compile=config.batches.compile,
            checkpoint=str(config.net.checkpoint) if config.net.checkpoint else None,
            net=NETS[config.net.net],
        )
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
            size: count - self._last["batch_histogram"].get(size, 0) for size, count in stats["batch_histogram"].items()
        }
        self._last, self._at = stats, now
        return [
            f"{rows / seconds:,.0f} rows/s, {batches / seconds:,.0f} batches/s",
            f"wait p50 {percentile_us(waits, 0.5):,.0f} us, p99 {percentile_us(waits, 0.99):,.0f} us",
            f"{stats['clients']} clients, weights {stats['version']}"
            + (f", {stats['failures']} failed batches" if stats["failures"] else ""),
            "batches of rows: " + (", ".join(f"{n} of {size}+" for size, n in sizes.items() if n) or "none"),
        ]


class Attendant:
    """Looks after a server that runs: tells what happens, follows the weights file, shows rates.

    A context manager: until its end, lines of rates are redrawn in place where standard error is a terminal.
    """

    def __init__(self, server: InferenceServer, config: ServeConfig, weights_stamp: tuple[int, int] | None) -> None:
        """`weights_stamp` is that of the weights file when it was read."""
        from rich.console import Console
        from rich.live import Live

        self._server = server
        self._config = config
        self._weights_stamp = weights_stamp
        self._console = Console(stderr=True, highlight=False)
        is_live = config.stats and self._console.is_terminal
        self._live = Live(console=self._console, auto_refresh=False) if is_live else None
        self._meter = Meter(server)
        self._shown_at = time.monotonic()
        self._num_failures = 0

    def __enter__(self) -> Attendant:
        self.tell(f"serving {self._server.name!r}: {getattr(self._server.device, 'description', self._config.model)}")
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def tell(self, line: str) -> None:
        """Print a line on standard error."""
        self._console.print(line, markup=False, soft_wrap=True)

    def look(self) -> None:
        """Do what there is to do. Raises ServerGone where the server has ended."""
        if self._server.error is not None:
            raise ServerGone(f"the server ended:\n{self._server.last_failure}")
        self._tell_events()
        if self._config.net.follow:
            self._follow_weights()
        if self._config.stats and time.monotonic() - self._shown_at >= STATS_S:
            self._shown_at = time.monotonic()
            self._show_rates()

    def _tell_events(self) -> None:
        while self._server.events:
            self.tell(self._server.events.popleft())
        num_failures = self._server.stats()["failures"]
        if num_failures > self._num_failures:
            self._num_failures = num_failures
            self.tell(f"the model failed: {self._server.last_failure}")

    def _follow_weights(self) -> None:
        """Serve what has taken the place of the weights file. What cannot be served is not tried again."""
        stamp = file_stamp(self._config.net.checkpoint)
        if stamp == self._weights_stamp:
            return
        try:
            self.tell(f"serving weights {self._server.swap(self._config.net.checkpoint, SWAP_S)}")
        except ConfigError as error:
            self.tell(f"kept the old weights: {error}")
        except TimeoutError as error:
            self.tell(f"still the old weights, trying again: {error}")
            return
        self._weights_stamp = stamp

    def _show_rates(self) -> None:
        from rich.text import Text

        if self._live:
            self._live.update(Text("\n".join(self._meter.lines())), refresh=True)
        else:
            self.tell("; ".join(self._meter.lines()))


def run(config: ServeConfig, stop: threading.Event | None = None) -> dict[str, Any]:
    """Serve until `stop`, or else until an Interrupt; returns the sums. Tells on standard error what happens.

    An Interrupt is made when the model is there: it leaves the signals alone as long as that is loaded.
    """
    config = config.resolved()
    weights_stamp = file_stamp(config.net.checkpoint)  # before they are read: a replacement is never missed
    device = load_device(config)
    until = stop or Interrupt()
    with make_server(config, device) as server:
        start = time.monotonic()
        with Attendant(server, config, weights_stamp) as attendant:
            while not until.wait(FOLLOW_S):
                attendant.look()
        stats = server.stats()
        del stats["waits"]
        return {"name": server.name, "seconds": time.monotonic() - start} | stats
