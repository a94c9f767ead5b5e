"""The engine of one node as the driver has it: the actor, and the calls that are on their way to it.

Calls are made at most once: what becomes of one that was on its way when the actor died is never known, and the units
that it carried are granted again. Read next: node.py, the other side.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from shmzero.cluster.connection import NodeInfo, one_line
from shmzero.cluster.messages import Answer, Greeting, Setup, Status, Step
from shmzero.cluster.node import NodeEngine
from shmzero.engine.interface import NodeReport
from shmzero.engine.weights import CheckpointFile
from shmzero.processes.watch import Watch

CALLS_AT_ONCE = 2
"""While the driver reads one answer, the node plays on for the next."""

START_S = 120.0
"""A node on which no engine starts within so long is not used."""
GREET_S = 0.5
"""How long an engine that died is left alone before the one in its place is greeted."""
RATE_S = 10.0
"""The time over which a node's rate is told."""

Kind = Literal["greet", "begin", "step", "end"]


@dataclass(frozen=True)
class Shared:
    """A checkpoint in Ray's object store, which this process owns: nodes fetch it from there."""

    ref: Any
    size: int
    """Bytes."""

    @classmethod
    def put(cls, file: CheckpointFile) -> Shared:
        """Put a checkpoint there."""
        import ray

        return cls(ray.put(file), len(file.data))


class Lost(Exception):
    """A call came to nothing: with the engine, which Ray starts again, with its node, or because it cannot be had."""

    def __init__(self, why: str, what: Literal["engine", "node", "refuses"]) -> None:
        super().__init__(why)
        self.what = what


class RemoteNode:
    """An actor on one node, and where its engine stands."""

    def __init__(self, info: NodeInfo) -> None:
        """Has Ray start the actor, which nothing waits for."""
        self.info = info
        self.engine = ""
        """The name of the engine that plays, empty until it has been begun."""
        self.began = False
        self.status = Status()
        self.watch = Watch()
        self.answers = 0
        self.sent_version = 0
        """The version of the newest checkpoint that was sent to it."""
        self.sent_other = 0
        """The number of the newest checkpoint of the other network that was sent to it."""
        self.bytes_up = self.bytes_down = 0
        """Of records that came, and of checkpoints that went."""
        self.rounds = self.restarts = 0
        self._rounds_lately: deque[tuple[float, int]] = deque()
        self._calls: deque[tuple[Kind, Any]] = deque()
        self._actor = self._start()
        self._greets_at: float | None = time.monotonic()
        """When the engine is to be greeted, None where it has been."""
        self._lost_at = time.monotonic()
        """Since when there is none that has answered."""

    def _start(self) -> Any:
        """The actor: one engine on this node alone, which Ray starts again when it dies."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        info = self.info
        return (
            ray.remote(NodeEngine)
            .options(
                num_cpus=info.num_cpus,
                num_gpus=info.num_gpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(info.id, soft=False),
                max_restarts=-1,
                max_task_retries=0,
            )
            .remote(watch_parent=True)
        )

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def refs(self) -> list[Any]:
        """What Ray's wait takes, of the calls on their way, the oldest first."""
        return [ref for _, ref in self._calls]

    @property
    def has_room(self) -> bool:
        """Whether a further step may be asked for."""
        return self.began and len(self._calls) < CALLS_AT_ONCE

    # --- calls -------------------------------------------------------------------------------------------

    def greet_if_due(self) -> None:
        """Ask an engine that Ray has started, or is about to start, who it is."""
        if self._greets_at is not None and time.monotonic() >= self._greets_at:
            self._greets_at = None
            self._calls.append(("greet", self._actor.greet.remote()))

    def forget_engine(self) -> None:
        """Note that the engine is gone; the one in its place is to be greeted."""
        self.restarts += 1 + self.status.restarts
        self.status = Status()
        self.began, self.engine = False, ""
        self._lost_at = time.monotonic()

    def has_not_started(self) -> bool:
        """Whether no engine has answered for START_S, although Ray tries."""
        return not self.engine and time.monotonic() - self._lost_at > START_S

    def begin(self, setup: Setup, checkpoint: Shared | None, other: Shared | None) -> None:
        """Have it start a fleet."""
        self._calls.append(("begin", self._actor.begin.remote(setup, *self._refs_of(checkpoint, other))))

    def step(self, step: Step, checkpoint: Shared | None, other: Shared | None) -> None:
        """Have it play on."""
        self._calls.append(("step", self._actor.step.remote(step, *self._refs_of(checkpoint, other))))

    def _refs_of(self, *files: Shared | None) -> list[Any]:
        """What Ray replaces by the checkpoints themselves on the way."""
        self.bytes_down += sum(file.size for file in files if file is not None)
        return [file and file.ref for file in files]

    def end(self) -> None:
        """Have it end its fleet."""
        self._calls.append(("end", self._actor.end.remote()))

    def take(self, ready: set[Any]) -> tuple[Kind, Greeting | Answer] | None:
        """The answer to the oldest call, if that is among those that are ready. Raises Lost."""
        import ray

        if not self._calls or self._calls[0][1] not in ready:
            return None
        kind, ref = self._calls.popleft()
        self.answers += 1
        try:
            return kind, ray.get(ref)
        except ray.exceptions.RayError as error:
            self._calls.clear()
            self._greets_at = time.monotonic() + GREET_S
            raise self._loss(error) from None

    def _loss(self, error: Exception) -> Lost:
        """What an error of Ray's means."""
        from ray import exceptions

        if isinstance(error, exceptions.ActorUnavailableError):
            return Lost("its process ended", "engine")
        if isinstance(error, exceptions.RayTaskError) or "creation task" in str(error):
            lines = [line for line in str(error).splitlines() if line.strip()]
            return Lost(lines[-1].strip(), "refuses")
        return Lost(one_line(error), "node")

    # --- how it goes ------------------------------------------------------------------------------------

    def add(self, records: list[bytes], new: int) -> None:
        """Count what came: records, of which so many are of rounds that were not there."""
        self.bytes_up += sum(map(len, records))
        self.rounds += new

    def report(self, newest: int) -> NodeReport:
        """How it is; `newest`: the version of the weights that were published last. To be called every so often."""
        now = time.monotonic()
        self._rounds_lately.append((now, self.rounds))
        while len(self._rounds_lately) > 2 and now - self._rounds_lately[1][0] > RATE_S:
            self._rounds_lately.popleft()
        then, rounds = self._rounds_lately[0]
        return NodeReport(
            rounds=self.rounds,
            rounds_per_s=(self.rounds - rounds) / (now - then) if now > then else 0.0,
            version_lag=newest - self.status.served,
            restarts=self.restarts + self.status.restarts,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
        )

    # --- the end -----------------------------------------------------------------------------------------

    def why_stuck(self, stall_s: float) -> str | None:
        """What it has not done for too long, None where it may go on. To be called often."""
        self.watch.look(self.answers, bool(self._calls))
        limit_s = self.watch.stuck_s(stall_s)
        return f"has not answered for {limit_s:g} s" if limit_s else None

    def restart(self) -> None:
        """Kill the actor; Ray starts another one in its place."""
        self._kill(no_restart=False)
        self._calls.clear()
        self._greets_at = time.monotonic() + GREET_S

    def kill(self) -> None:
        """Kill the actor for good."""
        self._kill(no_restart=True)
        self._calls.clear()

    def _kill(self, no_restart: bool) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ValueError, RuntimeError):  # it is gone, or the cluster is
            ray.kill(self._actor, no_restart=no_restart)
