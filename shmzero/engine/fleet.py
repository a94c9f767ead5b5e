"""A fleet of child processes: workers and inference processes around one segment.

The fleet grants units, returns finished ones and replaces children that die. It knows nothing of SQLite and
terminals; engine/run.py does. Read next: engine/worker_pool.py, engine/inference_pool.py, engine/weights.py,
engine/stalls.py, each of which is a part of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from shmzero.engine.config import SelfPlayConfig, to_flags
from shmzero.engine.inference_pool import InferencePool
from shmzero.engine.interface import NodeReport
from shmzero.engine.plan import FleetPlan
from shmzero.engine.stalls import StallWatch
from shmzero.engine.units import Units
from shmzero.engine.weights import CheckpointFile, Source, Weights, WeightsVersions
from shmzero.engine.worker_pool import WorkerPool
from shmzero.game.bots import OLDER
from shmzero.processes.child import starting
from shmzero.processes.deaths import Deaths
from shmzero.processes.selector import ChildSelector
from shmzero.runs.recorder import Unit
from shmzero.shm.segment import create_private


class Fleet:
    """Workers and inference processes that play units. Use as a context manager, from one thread."""

    def __init__(
        self,
        plan: FleetPlan,
        units: Iterable[int] | None,
        num_units: int,
        version: int = 0,
        in_progress: Mapping[int, list[bytes]] | None = None,
        checkpoint: CheckpointFile | None = None,
        other: CheckpointFile | None = None,
    ) -> None:
        """Starts everything. `units` yields the ids to play, `num_units` is how many there are. Without
        `units` they are added later, perhaps not as many.

        `version` is that of the weights it starts with; `in_progress` has the first rounds' records of games
        that it shall go on with. `checkpoint` and `other` stand in for the files that the plan names, of the
        network and of the one that holds others' seats.

        Raises SegmentError where shared memory is short, ConfigError for impossible sizes and for a
        checkpoint that cannot be read, StartError where the machine has no room for the processes.
        """
        self.plan = plan = plan.for_units(num_units)
        plan.config.inference.check_devices()
        self.events: deque[str] = deque()
        """Lines for people: replacements, refusals, the switch to the compiled network."""
        self.paused = False
        """While set, no further units are granted; those in progress go on."""
        self._units = Units((), 0, {}) if units is None else Units(units, num_units, in_progress or {})
        self._deaths = Deaths()
        self._weights = WeightsVersions(version, checkpoint or plan.config.net.checkpoint)
        with starting("a fleet") as undo:
            undo.callback(self._weights.close)
            self._selector = ChildSelector()
            undo.callback(self._selector.close)
            self._memory = create_private(len(plan.devices), plan.workers, plan.slots, plan.rows_per_slot)
            undo.callback(self._memory.close)
            children = (self._deaths, self._selector, self.events)
            self._inference = InferencePool(plan, self._memory, self._weights, *children, other)
        self.segment = self._memory.segment
        command = partial(command_of, asked=plan.asked, weights=self._weights, inference=self._inference)
        self._workers = WorkerPool(plan, self._memory, self._units, *children, command)
        self._stalls = StallWatch(self._memory, plan, plan.config.processes.stall_s, self.events)
        try:
            self._inference.start()
            self._workers.start()
        except BaseException:
            self.close()
            raise

    def notices(self) -> list[str]:
        """Its sizes, for people."""
        plan = self.plan
        return [
            f"{plan.workers} workers x {plan.lanes} lanes, {len(plan.devices)} inference processes "
            f"({', '.join(plan.devices)}), batches up to {plan.max_batch} rows"
        ]

    @property
    def in_progress(self) -> dict[int, list[bytes]]:
        """Records of the rounds finished so far of games in progress: all that is needed to go on with them."""
        return self._units.in_progress

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        return self.plan.workers

    @property
    def num_servers(self) -> int:
        """Inference processes."""
        return len(self.plan.devices)

    @property
    def restarts(self) -> int:
        """Children that died and were replaced."""
        return self._deaths.total

    @property
    def ready(self) -> bool:
        """Whether every inference process serves; one that is starting still has to read its weights."""
        return self._inference.ready

    @property
    def waits(self) -> bool:
        """Whether it is paused and has finished all that was granted: nobody plays."""
        return self.paused and self._workers.is_idle

    @property
    def done(self) -> bool:
        """Whether every unit has been returned by `poll`."""
        return self._units.left == 0

    def poll(self, timeout_s: float) -> list[Unit]:
        """Units finished within at most `timeout_s`, as (unit, records); each once.

        Grants work, replaces the dead. Raises WorkerDied when children keep dying, ConfigError where
        a child refuses its settings, StartError where there is no room for a replacement.
        """
        if not self.paused:
            self._workers.grant()
        self._inference.flush()
        self._selector.wait(timeout_s)
        self._stalls.look(self._workers.workers, self._inference.servers)
        return self._units.take_finished()

    def add_units(self, units: Mapping[int, list[bytes]]) -> None:
        """Play these units as well; each comes with the records of the rounds of it that are finished."""
        self._units.add(units)

    # --- weights ------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version of the weights that were published last; see `served`."""
        return self._weights.newest

    @property
    def served(self) -> Weights:
        """The newest weights that an inference process has taken; a replacement starts with them."""
        return self._weights.served

    def publish(self, source: Source, version: int | None = None) -> int:
        """Serve the weights of a checkpoint from the next batch on; returns their version.

        The version is the next one, or `version` where that is higher. What cannot be used is refused
        with a line in `events`, and what was served before stays.
        """
        try:
            weights = self._weights.publish(source, version)
        except OSError as error:
            path = source.path if isinstance(source, CheckpointFile) else source
            self.events.append(f"checkpoint {path} cannot be read: {error.strerror}; weights {self.version} stay")
        else:
            self._inference.offer(weights)
        return self.version

    def seat_other(self, source: Source) -> None:
        """Let a checkpoint's network hold the seats that the opponent pool gives to one, from the next batch on."""
        self._inference.offer_other(source)

    # --- what is known of it ---------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Sums over all workers (prefix `worker_` for times and rows) and servers since the start."""
        total: dict[str, int] = {}
        for index in range(self.plan.workers):
            for name, value in self.segment.worker_counters(index).items():
                if name not in ("pid", "progress"):
                    key = f"worker_{name}" if name in ("rows", "busy_ns", "wait_ns") else name
                    total[key] = total.get(key, 0) + value
        for index in range(len(self.plan.devices)):
            for name, value in self.segment.server_counters(index).items():
                if name not in ("histogram", "waits", "version"):
                    total[name] = total.get(name, 0) + value
        return total

    def by_node(self) -> dict[str, NodeReport]:
        """Nothing: there is only this machine."""
        return {}

    def pids(self) -> dict[str, list[int]]:
        """Process ids of the living children, by kind."""
        return {
            "workers": [worker.child.pid for worker in self._workers.workers],
            "servers": [server.child.pid for server in self._inference.servers],
        }

    def close(self) -> list[Unit]:
        """End every child at once and return what was finished and not yet returned."""
        self._workers.kill()
        self._inference.kill()
        self._workers.close()
        self._inference.close()
        self._selector.close()
        self._weights.close()
        if self._memory.fd >= 0:
            self._memory.close()
            self._memory.fd = -1
        return self._units.take_finished()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._memory.fd >= 0:
            self.close()


def command_of(unit: int, asked: SelfPlayConfig, weights: WeightsVersions, inference: InferencePool) -> str:
    """The command that plays a unit alone, with the networks that are served now."""
    is_game, other, path = asked.length.games is not None, inference.other_path, weights.served.path
    pool = asked.seats.opponent_pool
    alone = asked.but(
        rounds=None if is_game else 1,
        games=1 if is_game else None,
        first=unit,
        opponent_pool=pool.replace(f"{OLDER}:", f"{other}:") if other else pool,
        checkpoint=Path(path) if path else None,
        follow=False,
        out=None,
        json=False,
    )
    return f"python -m shmzero.selfplay {to_flags(alone)}"
