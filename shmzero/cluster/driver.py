"""Self-play on the nodes of a Ray cluster: an engine like a fleet, for a run that knows no difference.

It finds the nodes, starts an engine on each, grants them units, takes what they finish and hands out weights. What a
node had when it was lost is granted again. Read next: grants.py (who has what), remote.py (one node), node.py (what
runs there).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shmzero.cluster.connection import Connection, NodeInfo
from shmzero.cluster.grants import Grants
from shmzero.cluster.messages import Answer, Build, Greeting, Setup, Step
from shmzero.cluster.remote import START_S, Lost, RemoteNode, Shared
from shmzero.engine.fleet import Fleet
from shmzero.engine.interface import Engine, NodeReport
from shmzero.engine.plan import FleetPlan
from shmzero.engine.weights import CheckpointFile, Weights, WeightsVersions
from shmzero.errors import ConfigError, ShmzeroError, StartError, WorkerDied
from shmzero.game.bots import OLDER
from shmzero.runs.recorder import Unit

LOOK_S = 1.0
"""How often the nodes are looked for."""
END_S = 1.0
"""How long nodes have to send what they have finished when everything ends."""
COUNTED = ("decisions", "simulations", "terminals", "rows", "batches", "busy_ns", "worker_rows", "worker_busy_ns")
"""Counters of a fleet that a run reads, which are 0 before any node has told its own."""
MOST_DEATHS = 5
"""A node whose engine dies so often in a row, with nothing finished in between, is given up."""


class ClusterEngine:
    """Plays units on all nodes of a cluster: an Engine. Use as a context manager, from one thread."""

    def __init__(
        self,
        plan: FleetPlan,
        units: Iterator[int],
        num_units: int,
        version: int,
        in_progress: Mapping[int, list[bytes]],
        *,
        connection: Connection,
        remote: Callable[[NodeInfo], RemoteNode] = RemoteNode,
    ) -> None:
        """See StartEngine; `remote` has the engine of a node started.

        Raises ConfigError for a checkpoint that cannot be read.
        """
        self.plan = plan
        self.events: deque[str] = deque()
        self.paused = False
        self._connection = connection
        self._remote = remote
        self._build = str(Build.here())
        self._grants = Grants(units, num_units, in_progress)
        self._num_units = num_units
        self._weights = WeightsVersions(version, plan.config.net.checkpoint)
        self._nodes: dict[str, RemoteNode] = {}
        """The nodes that play or are about to, by Ray's id."""
        self._refused: dict[str, str] = {}
        """Why a node is not used, by Ray's id."""
        self._deaths: Counter[str] = Counter()
        """Deaths of a node's engine in a row."""
        self._restarts = 0
        self._gone: dict[str, NodeReport] = {}
        """How nodes were that are lost, by name."""
        self._past: Counter[str] = Counter()
        """Counters of engines that have ended."""
        self._looked_at = -LOOK_S
        self._has_said_that_it_waits = False
        self._is_closed = False
        self._last_error: ShmzeroError | None = None
        """Why the node that was refused last is not used."""
        self._sent = {version: self._by_value(self._weights.served)}
        """References to the checkpoints that are served, or were published since, by version."""
        self._other: Shared | None = None
        """The same to the newest checkpoint of the network that holds others' seats, of which there were so many."""
        self._num_others = 0
        named = plan.config.seats.network()
        if named is not None and named != OLDER:
            self.seat_other(Path(named))
            if self.events:
                raise ConfigError(self.events.popleft())

    def notices(self) -> list[str]:
        """What a run says of it before it plays."""
        return [f"the nodes of a Ray cluster ({self._connection.address}) play; each tells its sizes when it begins"]

    # --- weights -----------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version of the weights that were published last, be they taken or refused."""
        return self._weights.newest

    @property
    def served(self) -> Weights:
        """The newest weights that an inference process of any node has taken; nodes that begin start with them."""
        return self._weights.served

    def publish(self, path: Path, version: int | None = None) -> int:
        """Send the weights of a checkpoint to every node, with its next step; returns their version: see Engine."""
        try:
            weights = self._weights.publish(path, version)
        except OSError as error:
            self.events.append(f"checkpoint {path} cannot be read: {error.strerror}; weights {self.version} stay")
        else:
            self._sent[weights.version] = self._by_value(weights)
        return self.version

    def seat_other(self, path: Path) -> None:
        """Send a checkpoint for others' seats to every node, with its next step: see Engine."""
        try:
            file = CheckpointFile.read(path)
        except OSError as error:
            self.events.append(f"checkpoint {path} cannot be read: {error.strerror}")
        else:
            self._other = Shared.put(file)
            self._num_others += 1

    def _by_value(self, weights: Weights) -> Shared | None:
        """What nodes get of weights; None where they are made from the seed."""
        if weights.name is None or weights.path is None:
            return None
        return Shared.put(CheckpointFile(weights.path, Path(weights.name).read_bytes()))

    def _note_served(self, version: int) -> None:
        self._weights.set_taken(version)
        served = self._weights.served.version
        for older in [older for older in self._sent if older < served]:
            del self._sent[older]
        self._weights.close_older(served)

    # --- units -------------------------------------------------------------------------------------------

    @property
    def in_progress(self) -> Mapping[int, list[bytes]]:
        """Records of the rounds finished so far of games in progress."""
        return self._grants.in_progress

    @property
    def done(self) -> bool:
        """Whether every unit has been returned by `poll`."""
        return self._grants.left == 0

    def poll(self, timeout_s: float) -> list[Unit]:
        """Units finished within at most `timeout_s`, as (unit, records); each once.

        Raises StartError where the cluster's head is gone, ConfigError where no node can play, WorkerDied where a
        unit ends its workers or engines keep dying.
        """
        self._look_for_nodes()
        for node in list(self._nodes.values()):
            self._feed(node)
        self._wait_for(list(self._nodes.values()), timeout_s)
        return self._grants.take_finished()

    def _wait_for(self, nodes: list[RemoteNode], timeout_s: float) -> None:
        """Wait for the first answer of these nodes, and act on all that are there."""
        import ray

        refs = [ref for node in nodes for ref in node.refs]
        if not refs:
            time.sleep(timeout_s)
            return
        if ray.wait(refs, num_returns=1, timeout=timeout_s)[0]:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            self._take(set(ready))

    def _take(self, ready: set[Any]) -> None:
        for node in list(self._nodes.values()):
            try:
                while (answer := node.take(ready)) is not None:
                    self._act(node, answer[1])
            except Lost as loss:
                self._lose(node, loss)

    def _act(self, node: RemoteNode, answer: Greeting | Answer) -> None:
        """Act on what a node has said. Raises what ended its fleet, where that ends the run."""
        if isinstance(answer, Greeting):
            self._begin(node, answer)
            return
        if answer.engine != node.engine:  # of another engine than the one that was greeted
            return
        for part in answer.parts:
            new = self._grants.take(node.engine, part)
            node.add(part.records, new)
            if new:
                self._deaths[node.info.id] = 0
        self.events.extend(f"node {node.name}: {line}" for line in answer.events)
        if answer.error is not None:
            self._refuse(node, answer.error)
            return
        if not node.began:
            node.began = True
            self.events.append(f"node {node.name} plays: {'; '.join(answer.status.notices)}")
        node.status = answer.status
        self._note_served(answer.status.served)

    def _feed(self, node: RemoteNode) -> None:
        """Keep two steps on their way to a node, with units enough; kill an engine that does not answer."""
        if why := node.why_stuck(self.plan.config.processes.stall_s):
            node.restart()
            self._lose(node, Lost(why, "engine"))
            return
        node.greet_if_due()
        while node.has_room:
            units = {} if self.paused else self._grants.grant(node.engine, self._room(node))
            checkpoint = other = None
            if node.sent_version < self._weights.newest:
                node.sent_version, checkpoint = self._weights.newest, self._sent[self._weights.newest]
            if node.sent_other < self._num_others:
                node.sent_other, other = self._num_others, self._other
            step = Step(node.engine, units, self.paused, node.sent_version)
            node.step(step, checkpoint, other)

    def _room(self, node: RemoteNode) -> int:
        """How many more units a node may have: what it wants, and of the last ones its share."""
        share = -(-self._grants.left // max(1, sum(other.began for other in self._nodes.values())))
        return min(node.status.wanted, share) - self._grants.num_granted(node.engine)

    # --- nodes -------------------------------------------------------------------------------------------

    def _look_for_nodes(self) -> None:
        """Start an engine on each node that has none, and let go of those that are gone. Raises StartError."""
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        alive = {info.id: info for info in self._connection.nodes() if info.num_cpus > 0}
        for node in [node for node in self._nodes.values() if node.info.id not in alive]:
            self._lose(node, Lost("it left the cluster", "node"))
        self._refused = {id: why for id, why in self._refused.items() if id in alive}
        for info in alive.values():
            if info.id not in self._nodes and info.id not in self._refused:
                self._nodes[info.id] = self._remote(info)
        self._check_any_can_play(alive.values())

    def _check_any_can_play(self, alive: Collection[NodeInfo]) -> None:
        """Raises what was wrong with the last node that was refused, where none is left."""
        if alive and not self._nodes and self._last_error is not None:
            raise self._last_error
        if not alive and not self._has_said_that_it_waits:
            self.events.append("no node of the cluster has cores to play on: waiting for one")
        self._has_said_that_it_waits = not alive

    def _begin(self, node: RemoteNode, greeting: Greeting) -> None:
        """Have a node that has greeted start its fleet, or refuse it."""
        if greeting.build != self._build:
            self._refuse(node, ConfigError(f"it runs {greeting.build}; this machine runs {self._build}"))
            return
        node.engine = greeting.engine
        served = self._weights.served.version
        node.sent_version, node.sent_other = served, self._num_others
        setup = Setup(
            config=self.plan.asked.but(cluster=None),
            num_cpus=node.info.num_cpus,
            num_gpus=node.info.num_gpus,
            num_units=self._num_units,
            version=served,
        )
        node.begin(setup, self._sent[served], self._other)

    def _lose(self, node: RemoteNode, loss: Lost) -> None:
        """Grant again what a node had. Greet the engine that Ray starts in its place, or let go of the node."""
        self._deaths[node.info.id] += bool(node.engine)
        if loss.what == "refuses":
            self._refuse(node, StartError(str(loss)))
        elif self._deaths[node.info.id] >= MOST_DEATHS:
            self._refuse(node, WorkerDied(f"its engine died {MOST_DEATHS} times with nothing finished: {loss}"))
        elif node.has_not_started():
            self._refuse(node, StartError(f"no engine could be started there for {START_S:g} s: {loss}"))
        elif loss.what == "node":
            what = self._forget_engine(node)
            node.kill()
            self._let_go(node)
            self._looked_at = time.monotonic()  # Ray may take a moment to tell that the node is gone
            self.events.append(f"node {node.name} is lost: {loss}{what}")
        elif what := self._forget_engine(node):
            self.events.append(f"node {node.name} lost its engine and gets another one: {loss}{what}")

    def _forget_engine(self, node: RemoteNode) -> str:
        """Grant again what a node's engine has not finished; returns words about that, where there was an engine."""
        engine = node.engine
        if not engine:
            return ""
        self._restarts += 1 + node.status.restarts
        self._past.update(node.status.counters)
        node.forget_engine()
        units = self._grants.give_back(engine)
        return f"; what it had, {units} of the run's rounds or games, is granted again"

    def _let_go(self, node: RemoteNode, is_lost: bool = True) -> None:
        del self._nodes[node.info.id]
        self._restarts += node.status.restarts
        self._past.update(node.status.counters)
        if node.answers > 1:
            self._gone[node.name] = dataclasses.replace(
                node.report(self._weights.newest), rounds_per_s=0.0, is_lost=is_lost
            )

    def _refuse(self, node: RemoteNode, error: ShmzeroError) -> None:
        """Use a node no more; the others play on."""
        self._forget_engine(node)
        node.kill()
        self._let_go(node)
        self._refused[node.info.id] = str(error)
        self._last_error = type(error)(f"node {node.name} is not used: {error}")
        self.events.append(str(self._last_error))

    # --- how it goes ----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the inference processes of some node serve."""
        return any(node.status.ready for node in self._nodes.values())

    @property
    def waits(self) -> bool:
        """Whether it is paused and every node has finished all that was granted: nobody plays."""
        return self.paused and all(node.status.waits for node in self._nodes.values() if node.began)

    @property
    def num_workers(self) -> int:
        """Worker processes on all nodes."""
        return sum(node.status.num_workers for node in self._nodes.values())

    @property
    def num_servers(self) -> int:
        """Inference processes on all nodes."""
        return sum(node.status.num_servers for node in self._nodes.values())

    @property
    def restarts(self) -> int:
        """Processes that died and were replaced: engines, and the children of each."""
        return self._restarts + sum(node.status.restarts for node in self._nodes.values())

    def counters(self) -> dict[str, int]:
        """Sums over all nodes, also over engines that have ended: see Engine."""
        total = Counter(dict.fromkeys(COUNTED, 0))
        total.update(self._past)
        for node in self._nodes.values():
            total.update(node.status.counters)
        return dict(total)

    def by_node(self) -> dict[str, NodeReport]:
        """How each node is, or was when it was lost, by its name."""
        newest = self._weights.newest
        return self._gone | {node.name: node.report(newest) for node in self._nodes.values() if node.answers > 1}

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> list[Unit]:
        """End every node's engine and return what was finished and not yet returned."""
        nodes = [node for node in self._nodes.values() if node.began]
        is_there = self._connection.is_there()
        try:
            for node in nodes:
                node.end()
            end = time.monotonic() + END_S
            while any(node.refs for node in nodes) and (left_s := end - time.monotonic()) > 0:
                self._wait_for(nodes, left_s)
        except ShmzeroError as error:  # what is being returned counts more than what is wrong with a node now
            self.events.append(str(error))
        for node in list(self._nodes.values()):
            if is_there:
                node.kill()
            self._let_go(node, is_lost=False)
        self._weights.close()
        self._is_closed = True
        return self._grants.take_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_closed:
            self.close()


class EngineStarter:
    """Starts what plays: the fleet of this machine, or on a cluster. A StartEngine; use as a context manager.

    A cluster is joined, or started, when the first engine is wanted: whatever else is wrong is told before.
    """

    def __init__(self, address: str | None) -> None:
        """`address` of the cluster, None for this machine alone. Raises ConfigError where Ray is not installed."""
        self._connection = None if address is None else Connection(address)
        self._joined = contextlib.ExitStack()
        self._is_joined = False

    def __call__(
        self,
        plan: FleetPlan,
        units: Iterator[int],
        num_units: int,
        version: int,
        in_progress: Mapping[int, list[bytes]],
    ) -> Engine:
        """See StartEngine. Raises what Connection and the engine raise."""
        if self._connection is None:
            return Fleet(plan, units, num_units, version, in_progress)
        if not self._is_joined:
            self._joined.enter_context(self._connection)
            self._is_joined = True
        return ClusterEngine(plan, units, num_units, version, in_progress, connection=self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._joined.close()
