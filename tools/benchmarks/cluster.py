"""Benchmark `cluster`: what the driver of a Ray cluster takes from its nodes, and what Ray costs a node.

The nodes of the first part are simulated: their engines answer at once with copies of recorded rounds, so that the
driver is what is measured. The node of the second part is a real one, held against the fleet of this machine.
Read next: shmzero/cluster/driver.py.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import secrets
import socket
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shmzero import _core, play_rounds
from shmzero.cluster.connection import Connection, NodeInfo
from shmzero.cluster.driver import ClusterEngine
from shmzero.cluster.messages import CHUNK_BYTES, Answer, Build, Greeting, Part, Setup, Status, Step
from shmzero.cluster.node import size_of
from shmzero.cluster.remote import RemoteNode
from shmzero.engine.config import SelfPlayConfig
from shmzero.engine.fleet import Fleet
from shmzero.engine.interface import Engine, StartEngine
from shmzero.engine.plan import resolve
from shmzero.engine.progress import Every
from shmzero.engine.run import METRICS_S, TICK_S
from shmzero.errors import ConfigError, WorkerDied
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.runs.record_writer import RECORD_HEAD, run_folder
from shmzero.runs.recorder import Recorder
from tools.benchmarks.engines import cpu_s_of
from tools.benchmarks.measure import Result, Spread, interleaved, ratio
from tools.benchmarks.options import quick_flag, repeats_flag

RECORDED = 400
"""Rounds that are played once; the simulated nodes answer with copies of them."""
UNITS = 10**9
"""More rounds than any stretch finishes."""
START_S = 300.0
"""For all nodes to have finished something."""
PROFILED = 15
"""Functions that are shown of the profile."""
CONFIG = SelfPlayConfig.of(evaluator="hash", preset="light", device="cpu", rounds=UNITS, stall_s=86_400.0)


def measure(given: argparse.Namespace) -> list[Result]:
    """What the driver of a cluster takes from simulated nodes, and what Ray costs a real one."""
    if min(given.nodes) < 1:
        raise ConfigError(f"--nodes is {min(given.nodes)}; allowed: 1 and up")
    seconds = given.seconds or (1.0 if given.quick else 5.0)
    records = play_rounds(HashEvaluator(), RECORDED, CONFIG.search_config())
    check_renumbering(records[0])
    with Connection("local") as connection:
        simulated = {
            num_nodes: partial(simulate, records, given.network_ms / 1000, num_nodes) for num_nodes in given.nodes
        }
        results = driver_results(simulated, seconds, given.repeats)
        largest = max(given.nodes)
        results += profile_results(nodes(largest), simulated[largest], seconds)
        return results + node_results(connection, given.node_seconds or 2 * seconds, given.repeats)


# --- a stretch of a run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """Of a run that has found its pace."""

    wall_s: float
    rounds: int
    record_bytes: int
    driver_cpu_s: float
    """CPU time of this process, with all its threads."""
    cpu_s: float
    """The same with the processes that it has started, and those that they have."""

    @property
    def rounds_per_s(self) -> float:
        return self.rounds / self.wall_s


def play(
    start: StartEngine,
    seconds: float,
    num_nodes: int = 1,
    profile: cProfile.Profile | None = None,
) -> Stretch:
    """Play into a run folder as a run does, and measure once every node has finished something.

    A fleet's processes are its own; those of a cluster are all that this process has started. Raises WorkerDied where
    the nodes do not come to it.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        run_folder(Path(folder) / "run", CONFIG.identity(), CONFIG.old_names) as writer,
    ):
        recorder = Recorder(writer, range(UNITS))
        sync_due = Every(METRICS_S)

        def attend(engine: Engine, until: Callable[[], bool]) -> None:
            while not until():
                recorder.poll(engine, TICK_S)
                if sync_due():
                    recorder.sync()

        with start(resolve(CONFIG), recorder.missing(), UNITS, 0, {}) as engine:
            end = time.monotonic() + START_S

            def all_play() -> bool:
                if time.monotonic() > end:
                    raise WorkerDied(f"{num_nodes} nodes have not all finished a round within {START_S:g} s")
                reports = engine.by_node().values()
                return recorder.finished_units > 0 and (
                    not reports or sum(report.rounds > 0 for report in reports) == num_nodes
                )

            attend(engine, all_play)
            attend(engine, time_is_over(seconds / 4))
            recorder.commit()
            before, spent, start_s = counts(recorder), Spent(pids_of(engine)), time.monotonic()
            if profile is not None:
                profile.enable()
            attend(engine, time_is_over(seconds))
            recorder.commit()
            if profile is not None:
                profile.disable()
            wall_s, after, cpu_s = time.monotonic() - start_s, counts(recorder), spent.seconds()
            recorder.finish(engine)
    rounds, record_bytes, driver_cpu_s = (now - then for then, now in zip(before, after, strict=True))
    return Stretch(wall_s, int(rounds), int(record_bytes), driver_cpu_s, driver_cpu_s + cpu_s)


def time_is_over(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed since this call."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def counts(recorder: Recorder) -> tuple[int, int, float]:
    """Rounds and bytes that are committed, and CPU seconds of this process."""
    return recorder.rounds, recorder.record_bytes, time.process_time()


class Spent:
    """The CPU time of processes since it was made; of those that end meanwhile, as Ray's idle ones may, none."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._before = {pid: cpu_s_or_0(pid) for pid in pids}

    def seconds(self) -> float:
        """So far."""
        return sum(max(0.0, cpu_s_or_0(pid) - before) for pid, before in self._before.items())


def cpu_s_or_0(pid: int) -> float:
    """CPU time of a process; 0 where it has ended."""
    try:
        return cpu_s_of(pid)
    except OSError:
        return 0.0


def pids_of(engine: Engine) -> list[int]:
    """The processes that play, besides this one: a fleet's, or a cluster's with Ray's own."""
    if isinstance(engine, Fleet):
        return [pid for kind in engine.pids().values() for pid in kind]
    return descendants(os.getpid())


def descendants(ancestor: int) -> list[int]:
    """Processes that a process has started, those that they have, and so on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found = list(children.get(ancestor, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


# --- simulated nodes -------------------------------------------------------------------------------------


class SimulatedEngine:
    """Has NodeEngine's calls, and answers with copies of recorded rounds as soon as units are granted."""

    def __init__(self, records: Sequence[bytes], network_s: float) -> None:
        """`network_s`: what a call takes on its way."""
        self._records = records
        self._network_s = network_s
        self._name = secrets.token_hex(8)
        self._units: deque[int] = deque()
        size = statistics.mean(size_of(Part(0, 0, True, [record])) for record in records)
        self._in_an_answer = int(CHUNK_BYTES / size)

    def greet(self) -> Greeting:
        """Say who this is."""
        return Greeting(str(Build.here()), socket.gethostname(), self._name)

    def begin(self, setup: Setup, checkpoint: object, other: object) -> Answer:
        """Be ready at once."""
        return self._answer([])

    def step(self, step: Step, checkpoint: object = None, other: object = None) -> Answer:
        """Answer with as many rounds as a real node puts into an answer."""
        self._units.extend(step.units)
        parts = [
            Part(unit, 0, True, [renumbered(self._records[unit % len(self._records)], unit)])
            for unit in (self._units.popleft() for _ in range(min(self._in_an_answer, len(self._units))))
        ]
        time.sleep(self._network_s)
        return self._answer(parts)

    def end(self) -> Answer:
        """Leave the rest."""
        return self._answer([])

    def _answer(self, parts: list[Part]) -> Answer:
        return Answer(self._name, parts, [], Status(ready=True, num_workers=1, wanted=4 * self._in_an_answer))


def renumbered(record: bytes, id: int) -> bytes:
    """The record of a round with another number."""
    end = RECORD_HEAD.size
    return record[: end - 8] + id.to_bytes(8, "little") + record[end:]


def check_renumbering(record: bytes) -> None:
    """That the core reads the number that `renumbered` has written, and nothing else has changed."""
    wanted = _core.decode_record(record) | {"id": 2**40 + 7}
    assert repr(_core.decode_record(renumbered(record, 2**40 + 7))) == repr(wanted)


class SimulatedNode(RemoteNode):
    """A simulated engine in an actor of its own, all on one machine."""

    def __init__(self, info: NodeInfo, records: Any, network_s: float) -> None:
        """`records`: a reference to the recorded rounds in Ray's object store."""
        self._arguments = (records, network_s)
        super().__init__(info)

    def _start(self) -> Any:
        import ray

        return ray.remote(SimulatedEngine).options(num_cpus=0).remote(*self._arguments)


class SimulatedConnection:
    """Tells of several nodes where there is one machine."""

    address = "simulated"

    def __init__(self, num_nodes: int) -> None:
        self._nodes = [NodeInfo(f"{number:06x}", "simulated", 1, 0) for number in range(num_nodes)]

    def nodes(self) -> list[NodeInfo]:
        """All of them, always."""
        return self._nodes

    def is_there(self) -> bool:
        """Always."""
        return True


def simulate(
    records: Sequence[bytes],
    network_s: float,
    num_nodes: int,
    seconds: float,
    profile: cProfile.Profile | None = None,
) -> Stretch:
    """A stretch of a run on so many simulated nodes; a cluster has been joined."""
    import ray

    remote = partial(SimulatedNode, records=ray.put(records), network_s=network_s)
    connection: Any = SimulatedConnection(num_nodes)
    return play(partial(ClusterEngine, connection=connection, remote=remote), seconds, num_nodes, profile)


def driver_results(simulated: Mapping[int, Callable[[float], Stretch]], seconds: float, repeats: int) -> list[Result]:
    """Of each number of simulated nodes, in turns."""
    stretches: dict[int, list[Stretch]] = {num_nodes: [] for num_nodes in simulated}

    def turn(num_nodes: int) -> float:
        stretches[num_nodes].append(simulated[num_nodes](seconds))
        return stretches[num_nodes][-1].rounds_per_s

    rates = interleaved({str(num_nodes): partial(turn, num_nodes) for num_nodes in simulated}, repeats)
    results = []
    for num_nodes, found in stretches.items():
        name = nodes(num_nodes)

        def spread(figure: Callable[[Stretch], float], found: list[Stretch] = found) -> Spread:
            return Spread(tuple(map(figure, found)))

        results += [
            rates[str(num_nodes)].result(f"{name}: the driver takes", "rounds/s"),
            spread(lambda one: one.record_bytes / 1e6 / one.wall_s).result(f"{name}: records", "MB/s"),
            spread(lambda one: 1000 * one.driver_cpu_s / one.rounds).result(
                f"{name}: CPU time of the driver", "s/1,000 rounds"
            ),
            spread(lambda one: one.rounds / one.driver_cpu_s).result(
                f"{name}: on one core the driver takes", "rounds/s", ">= 20,000"
            ),
            spread(lambda one: one.driver_cpu_s / one.wall_s).result(f"{name}: the driver has", "cores"),
        ]
    return results


def nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def profile_results(name: str, simulated: Callable[..., Stretch], seconds: float) -> list[Result]:
    """What the driver's thread does: the functions with most time in them, with what they call."""
    profile = cProfile.Profile()
    simulated(seconds, profile=profile)
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = sum(own for _, _, own, _, _ in stats.values())
    rows = sorted(stats.items(), key=lambda row: -row[1][3])
    return [
        Result(f"profile of {name}: {function_name(*where)}", cumulative / whole, f"of the time; own {own / whole:.3f}")
        for where, (_, _, own, cumulative, _) in rows[:PROFILED]
    ]


def function_name(file: str, line: int, function: str) -> str:
    """A function of a profile, without the folders that its file lies in."""
    return function if file == "~" else f"{Path(file).parent.name}/{Path(file).name}:{function}"


# --- a real node ------------------------------------------------------------------------------------------


def node_results(connection: Connection, seconds: float, repeats: int) -> list[Result]:
    """One node under Ray against the fleet of this machine, in turns."""
    node, fleet = "a node under Ray", "the fleet of this machine"
    ways: dict[str, Callable[[], Stretch]] = {
        node: partial(play, partial(ClusterEngine, connection=connection), seconds),
        fleet: partial(play, Fleet, seconds),
    }
    stretches: dict[str, list[Stretch]] = {name: [] for name in ways}

    def turn(name: str) -> float:
        stretches[name].append(ways[name]())
        return stretches[name][-1].rounds_per_s

    idle = idle_cores(min(seconds, 5.0))
    rates = interleaved({name: partial(turn, name) for name in ways}, repeats)
    efficiency = {name: Spread(tuple(one.rounds / one.cpu_s for one in found)) for name, found in stretches.items()}
    results = [Result("Ray's own processes, while nothing plays", idle, "cores")]
    for name in ways:
        results += [
            rates[name].result(f"{name}, light, hash evaluator", "rounds/s"),
            efficiency[name].result(f"{name}, all its processes", "rounds/CPU s"),
        ]
    return [
        *results,
        ratio("under Ray against the fleet: rounds/s", rates[node], rates[fleet], ">= 0.97"),
        ratio("under Ray against the fleet: rounds/CPU s", efficiency[node], efficiency[fleet], ">= 0.97"),
    ]


def idle_cores(seconds: float) -> float:
    """Of a cluster on which nothing plays: what all its processes take of the cores' time."""
    spent, start = Spent(descendants(os.getpid())), time.monotonic()
    time.sleep(seconds)
    return spent.seconds() / (time.monotonic() - start)


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    repeats_flag(sub)
    driver = sub.add_argument_group("driver options", "Simulated nodes, whose driver is measured.")
    driver.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K")
    driver.add_argument("--seconds", type=float, help="of each stretch (default 5; 1 with --quick)")
    driver.add_argument("--network-ms", type=float, default=0.5, help="of each call, on its way (default 0.5)")
    node = sub.add_argument_group("node options", "A real node, held against the fleet of this machine.")
    node.add_argument("--node-seconds", type=float, help="of each stretch (default twice --seconds)")
