"""The inference processes of a fleet: they are offered weights, and what they tell is acted on.

The pool replaces processes that die; a replacement starts with the weights that were taken last.
Read next: inference/process.py (the process), engine/weights.py (which weights there are).
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field

from shmzero.engine.plan import FleetPlan
from shmzero.engine.weights import CheckpointFile, Source, Weights, WeightsVersions
from shmzero.errors import ConfigError
from shmzero.game.bots import OLDER
from shmzero.inference.messages import (
    EVENTS,
    DeviceRefused,
    DeviceSpec,
    Event,
    InferenceSpec,
    NetworkCompiled,
    OtherRefused,
    Ready,
    TakeOther,
    TakeWeights,
    WeightsRefused,
    WeightsTaken,
)
from shmzero.nets.config import NETS
from shmzero.processes.child import Child, start_child, starting
from shmzero.processes.deaths import Deaths
from shmzero.processes.line_socket import LineSocket
from shmzero.processes.selector import ChildSelector
from shmzero.processes.watch import Watch
from shmzero.shm.segment import PrivateSegment

Request = tuple[int, int, int]
"""Worker, slot and generation."""


@dataclass
class Server:
    """An inference process as its parent holds it."""

    index: int
    child: Child
    lines: LineSocket[Event]
    epoch: int
    settled: int
    """The version of the weights that it last took, refused or was started with: it reads no older ones."""
    ready: bool = False
    """Whether it serves; a process that is starting still has to read its weights."""
    held: dict[Request, tuple[Watch, int]] = field(default_factory=dict)
    """Requests that it holds, with its batches when each was first seen: the stall watch keeps this."""


class InferencePool:
    """Starts the inference processes, offers them weights, replaces those that die."""

    def __init__(
        self,
        plan: FleetPlan,
        memory: PrivateSegment,
        weights: WeightsVersions,
        deaths: Deaths,
        selector: ChildSelector,
        events: deque[str],
        other: CheckpointFile | None = None,
    ) -> None:
        """Starts nothing. `events` gets lines for people. `other` stands in for the file of the other network."""
        self.servers: list[Server] = []
        self._plan, self._memory, self._weights = plan, memory, weights
        self._deaths, self._selector, self._events = deaths, selector, events
        named = plan.config.seats.network()
        self._others: list[Weights] = [] if named in (None, OLDER) else [Weights(0, named)]
        """Checkpoints of the network that holds the others' seats. Where the last is refused, the one before stays."""
        if other is not None:
            self._others = [Weights.copied(0, other)]

    def start(self) -> None:
        """Start all processes. Raises StartError."""
        for index in range(len(self._plan.devices)):
            self.servers.append(self._start(index, epoch=1))

    def _start(self, index: int, epoch: int) -> Server:
        name = f"inference process {index}"
        with starting(name) as held, ExitStack() as theirs:
            lines, control_fd = LineSocket.pair(EVENTS, held, theirs)
            fds = [self._memory.fd, control_fd]
            spec = self._spec(index, epoch, *fds)
            child = start_child(name, "shmzero.inference.process", spec, fds, self._plan.threads, held)
        server = Server(index, child, lines, epoch, settled=self._weights.served.version)
        self._selector.add(lines.fileno(), lambda: self._read_events(server))
        self._selector.add_end(child, lambda: self._reap(server))
        if offered := self._weights.offered:
            self._offer(server, offered)  # the process before it may have died without taking them
        return server

    def _spec(self, index: int, epoch: int, segment_fd: int, control_fd: int) -> InferenceSpec:
        config, plan, served = self._plan.config, self._plan, self._weights.served
        device = DeviceSpec(
            device=plan.devices[index],
            max_batch=plan.max_batch,
            threads=plan.threads,
            evaluator=config.net.evaluator,
            precision=config.inference.precision,
            compile=config.inference.compile,
            checkpoint=served.name,
            net=NETS[config.net.net],
            seed=config.seed,
            searched=plan.search.simulations > 0,
            other=self._others[-1].name if self._others else None,
        )
        return InferenceSpec(
            segment_fd=segment_fd,
            control_fd=control_fd,
            server=index,
            epoch=epoch,
            device=device,
            version=served.version,
            timeout_ms=config.inference.timeout_ms,
            spin_us=plan.spin_us,
        )

    @property
    def ready(self) -> bool:
        """Whether every process serves."""
        return all(server.ready for server in self.servers)

    @property
    def other_path(self) -> str | None:
        """The checkpoint of the other network, None where there is none."""
        return self._others[-1].path if self._others else None

    # --- what is told to the processes ---------------------------------------------------------------

    def offer(self, weights: Weights) -> None:
        """Have every process take up the weights from its next batch on."""
        for server in self.servers:
            self._offer(server, weights)

    def _offer(self, server: Server, weights: Weights) -> None:
        server.lines.post(TakeWeights(weights.name, weights.version))

    def offer_other(self, source: Source) -> None:
        """Have every process take a checkpoint for the other network from its next batch on. Raises OSError."""
        other = Weights.copied(0, source) if isinstance(source, CheckpointFile) else Weights(0, str(source))
        assert other.name is not None
        if len(self._others) == 2:  # no process is about to read the one before the last: it reads the newest only
            self._others.pop(0).close()
        self._others.append(other)
        for server in self.servers:
            server.lines.post(TakeOther(other.name))

    def flush(self) -> None:
        """Send what a process had no room for before: it is busy, or hangs and will be replaced."""
        for server in self.servers:
            server.lines.flush()

    # --- what the processes tell ------------------------------------------------------------------------

    def _read_events(self, server: Server) -> None:
        """Act on what a process has told. Raises ConfigError where it refuses its settings."""
        events = server.lines.receive()
        if server.lines.closed:
            self._selector.remove(server.lines.fileno())
        for event in events:
            self._act(server, event)

    def _act(self, server: Server, event: Event) -> None:
        match event:
            case DeviceRefused(message):
                raise ConfigError(self._with_paths(message))
            case Ready(description):
                server.ready = True
                self._events.append(f"{server.child.name} serves {description}")
            case WeightsTaken(version):
                self._weights.set_taken(version)
                self._settle(server, version)
                self._events.append(f"{server.child.name} serves weights {version}")
            case WeightsRefused(version, message):
                self._pass_on(server, message)
                self._weights.set_refused(version)
                self._settle(server, version)
            case OtherRefused(checkpoint, message):
                self._pass_on(server, message)
                self._drop_other(checkpoint)
            case NetworkCompiled(message):
                self._pass_on(server, message)

    def _pass_on(self, server: Server, message: str) -> None:
        self._events.append(f"{server.child.name}: {self._with_paths(message)}")

    def _with_paths(self, message: str) -> str:
        """A message of a process, in which the checkpoints' own paths stand in place of the copies'."""
        for other in self._others:
            message = other.with_path(message)
        return self._weights.with_paths(message)

    def _drop_other(self, name: str) -> None:
        """Forget a checkpoint that was refused for the other network; the one before stays."""
        for other in [other for other in self._others if other.name == name]:
            self._others.remove(other)
            other.close()

    def _settle(self, server: Server, version: int) -> None:
        """Note that a process is done with a version; what no process can be about to read any more is closed."""
        server.settled = max(server.settled, version)
        self._weights.close_older(min(other.settled for other in self.servers))

    # --- deaths --------------------------------------------------------------------------------------------

    def _reap(self, server: Server) -> None:
        """Clear away a process that has ended, and replace it. Raises WorkerDied, StartError, ConfigError."""
        self._read_events(server)
        self._selector.remove(server.lines.fileno())
        self._selector.remove(server.child.end_fd)
        self._memory.segment.reclaim_server(server.index)
        what = f"{server.child.name} ({self._plan.devices[server.index]})"
        self._events.append(self._deaths.count(what, server.child))
        self.servers[server.index] = self._start(server.index, server.epoch + 1)
        server.child.close()

    def kill(self) -> None:
        """Tell all processes to end at once; does not wait for them."""
        for server in self.servers:
            server.child.process.kill()

    def close(self) -> None:
        """End all processes at once."""
        for server in self.servers:
            server.child.kill()
        self.servers.clear()
        for other in self._others:
            other.close()
