"""The inference process: sweeps ready slots into batches, runs them, scatters the answers.

The loop knows a BatchDevice and no torch. Weights change between batches, with nothing in flight;
every answer carries the version that made it. Read next: mcts/evaluators.py, inference/net_device.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, cast

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.inference.device import BatchDevice, OtherDevice

POLL_MS = 50.0
"""How long a sweep waits for work before the loop looks at its control socket."""
IN_FLIGHT_POLL_MS = 0.05
"""The same while a batch computes."""


class ServeControl(Protocol):
    """Who tells the loop what to do and hears what happened."""

    closed: bool

    def commands(self) -> list[dict[str, Any]]: ...

    def send(self, **event: Any) -> None: ...

    def failed(self, error: ModelFailed) -> None:
        """A batch, or a request of it, failed. Raises where the loop shall end, with its slots unanswered."""


def serve(
    port: _core.ServerPort,
    device: BatchDevice,
    control: ServeControl,
    version: int,
    timeout_ms: float,
    spin_us: float = 0.0,
    check_finite: bool = False,
) -> None:
    """Serve until told to stop, or until the other end of `control` is gone; batches at hand are finished.

    Up to `device.num_buffers` batches are in flight; they finish in the order they were launched. Of a
    batch of several requests that failed each runs once more alone: only those fail that the model refuses.
    With `check_finite` a request whose answer holds NaN or infinity fails; the engine's workers look themselves.
    """
    in_flight: deque[tuple[int, int]] = deque()  # buffer, batch
    refused: deque[tuple[int, ModelFailed]] = deque()  # batches that failed as a whole
    next_buffer = 0
    pending: tuple[Any, int] | None = None
    other: Any = None

    def launch(batch: int, rows: int) -> None:
        nonlocal next_buffer
        device.launch(next_buffer, rows)
        in_flight.append((next_buffer, batch))
        next_buffer = (next_buffer + 1) % device.num_buffers

    def finish_oldest() -> None:
        buffer, batch = in_flight.popleft()
        device.wait(buffer)
        staging = device.staging(buffer)
        if told := port.scatter(batch, staging.policies, staging.values, version, check_finite):
            control.failed(ModelFailed(told))

    def refuse(batch: int, error: ModelFailed) -> None:
        control.failed(error)
        refused.append((batch, error))

    def finish_or_refuse() -> None:
        batch = in_flight[0][1]
        try:
            finish_oldest()
        except ModelFailed as error:
            refuse(batch, error)

    def finish_all() -> None:
        while in_flight:
            finish_or_refuse()
        while refused:
            batch, failure = refused.popleft()
            requests = port.split(batch)
            if len(requests) == 1:
                port.fail(requests[0], str(failure), version)
                continue
            for request in requests:
                staging = device.staging(next_buffer)
                try:
                    launch(request, port.refill(request, staging.features, staging.masks, device.max_batch))
                    finish_oldest()
                except ModelFailed as error:
                    port.fail(request, str(error), version)

    while True:
        for command in control.commands():
            if command["cmd"] == "stop":
                finish_all()
                return
            if command["cmd"] == "other":
                other = command["weights"]
            else:
                pending = (command["weights"], command["version"])
        if control.closed or pending is not None or other is not None or refused:
            finish_all()
        if control.closed:
            return
        if other is not None:
            try:
                cast(OtherDevice, device).seat_other(other)
            except ConfigError as error:
                control.send(event="refused", other=other, message=str(error))
            other = None
        if pending is not None:
            weights, wanted = pending
            pending = None
            try:
                take_up(device, weights)
            except ConfigError as error:
                control.send(event="refused", version=wanted, message=str(error))
            else:
                version = max(version, wanted)
                control.send(event="weights", version=version)
        if not in_flight and (line := device.poll()):
            control.send(event="compiled", message=line)
        if len(in_flight) < device.num_buffers:
            staging = device.staging(next_buffer)
            batch, rows = port.gather(
                staging.features,
                staging.masks,
                device.max_batch,
                timeout_ms,
                bool(in_flight),
                IN_FLIGHT_POLL_MS if in_flight else POLL_MS,
                spin_us,
            )
            if rows:
                try:
                    launch(batch, rows)
                except ModelFailed as error:
                    refuse(batch, error)
        if in_flight and (len(in_flight) == device.num_buffers or device.finished(in_flight[0][0])):
            finish_or_refuse()


def take_up(device: BatchDevice, weights: Any) -> None:
    """device.swap(weights), of which every exception is a ConfigError."""
    try:
        device.swap(weights)
    except ConfigError:
        raise
    except Exception as error:  # the user's weights meet the user's model: whatever they make of it
        said = " ".join(str(error).split())
        raise ConfigError(f"the weights cannot be served: {type(error).__name__}: {said}") from error
