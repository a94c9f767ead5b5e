"""The batch loop: gathers ready slots into batches, has them computed, scatters the answers.

It knows a BatchDevice and no torch. Weights change between batches, with nothing in flight; every answer carries
the version that made it. Read next: batches.py (one batch), device.py (what computes it), process.py (who runs this).
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.inference.batches import Batches
from shmzero.inference.device import BatchDevice, OtherDevice
from shmzero.inference.messages import (
    Command,
    LoopEvent,
    NetworkCompiled,
    OtherRefused,
    TakeOther,
    TakeWeights,
    WeightsRefused,
    WeightsTaken,
)


class ServeControl(Protocol):
    """Tells the loop what to do, and is told what happened."""

    closed: bool
    """Whether the loop shall end, because there is nobody left who could tell it so."""

    def commands(self) -> list[Command]: ...

    def send(self, event: LoopEvent) -> None: ...

    def failed(self, error: ModelFailed) -> None:
        """A batch, or a request of it, failed. Raises where the loop shall end, with its slots unanswered."""


class BatchLoop:
    """Serves the slots of a port on a device, as `control` says."""

    def __init__(
        self,
        port: _core.ServerPort,
        device: BatchDevice,
        control: ServeControl,
        version: int,
        timeout_ms: float,
        spin_us: float = 0.0,
        check_finite: bool = False,
    ) -> None:
        """`version` is that of the weights which the device has now.

        `timeout_ms`: how long a batch waits for further rows. `spin_us`: how long the loop spins before it sleeps.
        With `check_finite` a request whose answer holds NaN or infinity fails; the engine's workers look themselves.
        """
        self._device = device
        self._control = control
        self._batches = Batches(port, device, version, timeout_ms, spin_us, check_finite, control.failed)
        self._wanted: TakeWeights | None = None
        self._wanted_other: str | None = None  # checkpoint of the second network to take up

    def run(self) -> None:
        """Serve until `control` is closed; batches at hand are finished."""
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Read commands, launch a batch, finish a batch. Returns whether to go on."""
        batches = self._batches
        self._read_commands()
        is_over = self._control.closed
        if is_over or self._wanted is not None or self._wanted_other is not None or batches.any_failed:
            batches.finish_all()
        if is_over:
            return False
        if self._wanted_other is not None:
            self._take_up_other()
        if self._wanted is not None:
            self._take_up()
        if not batches.any_in_flight and (line := self._device.poll()):
            self._control.send(NetworkCompiled(line))
        batches.gather()
        batches.finish_ready()
        return True

    def _read_commands(self) -> None:
        """Note what is wanted. Of several commands for new weights the last counts."""
        for command in self._control.commands():
            match command:
                case TakeWeights():
                    self._wanted = command
                case TakeOther(checkpoint):
                    self._wanted_other = checkpoint

    def _take_up(self) -> None:
        """Serve the wanted weights, or say why not and go on with the old ones. Nothing may be in flight."""
        assert self._wanted is not None
        wanted, self._wanted = self._wanted, None
        try:
            take_up(self._device, wanted.weights)
        except ConfigError as error:
            self._control.send(WeightsRefused(wanted.version, str(error)))
        else:
            self._batches.version = max(self._batches.version, wanted.version)
            self._control.send(WeightsTaken(self._batches.version))

    def _take_up_other(self) -> None:
        """The same for the second network."""
        checkpoint, self._wanted_other = self._wanted_other, None
        assert checkpoint is not None
        try:
            cast(OtherDevice, self._device).seat_other(checkpoint)
        except ConfigError as error:
            self._control.send(OtherRefused(checkpoint, str(error)))


def take_up(device: BatchDevice, weights: Any) -> None:
    """Have the device serve other weights. Raises ConfigError whatever goes wrong; the old weights stay then."""
    try:
        device.swap(weights)
    except ConfigError:
        raise
    except Exception as error:  # the user's weights meet the user's model: whatever they make of it
        message = " ".join(str(error).split())
        raise ConfigError(f"the weights cannot be served: {type(error).__name__}: {message}") from error
