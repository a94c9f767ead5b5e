"""python -m shmzero.selfplay: plays rounds of Blob against itself and records them.

Settings become a Fleet (launch.py), finished units go into the run folder (records.py), and a line
says how it goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shmzero import _core
from shmzero.command import STARTED, Interrupt, file_stamp, nothing_started, parse_flags, run_command
from shmzero.config import OLDER, SelfPlayConfig, has_cuda, has_nvidia, read_toml, to_toml
from shmzero.errors import ConfigError, ShmzeroError
from shmzero.launch import Fleet, digest_of
from shmzero.records import RecordWriter

DEFAULT_ROUNDS = 100
TICK_S = 0.05
COMMIT_S = 0.5
"""Finished rounds are committed at least this often."""
METRICS_S = 5.0

EXAMPLES = """examples:
  python -m shmzero.selfplay                                    a first run, 100 rounds
  python -m shmzero.selfplay --rounds 2000 --preset medium --out runs/first
  python -m shmzero.selfplay --players 3-6 --cards 1-8 --device cuda --out runs/broad
  python -m shmzero.selfplay --games 20 --cards 7 --evaluator hash
  python -m shmzero.selfplay --config run.toml --seed 7"""


@dataclass
class Progress:
    """Where a run stands. Rates and shares are over the last minute in which it played."""

    units: int
    total_units: int
    begun: float
    """Units' worth of decisions made, an estimate: all there is to go by before the first is finished."""
    rounds: int
    elapsed_s: float
    rounds_per_min: float
    evaluations_per_s: float
    mean_batch_rows: float
    inference_busy: float
    workers_busy: float

    @property
    def eta_s(self) -> float | None:
        done = self.units or self.begun
        if done == 0 or self.elapsed_s <= 0:
            return None
        return max(0.0, self.total_units - done) * self.elapsed_s / done

    def line(self) -> str:
        eta = "?" if self.eta_s is None else f"{self.eta_s:.0f} s"
        return (
            f"{self.rounds} rounds | {self.rounds_per_min:,.0f} rounds/min | "
            f"{self.evaluations_per_s:,.0f} evaluations/s | batch {self.mean_batch_rows:.0f} | "
            f"inference {self.inference_busy:.0%} workers {self.workers_busy:.0%} busy | ETA {eta}"
        )


class Meter:
    """Turns the fleet's counters into Progress."""

    WINDOW_S = 60.0

    def __init__(self, fleet: Fleet, total_units: int) -> None:
        self._fleet = fleet
        self._total_units = total_units
        self._unit_decisions = decisions_in_a_unit(fleet.config.play_settings())
        self.start = time.monotonic()
        self.played_s = 0.0
        """Since the first row was answered, without what follows."""
        self.waited_s = 0.0
        """Seconds in which the fleet waited, being paused."""
        self.waits_since: float | None = None
        """Since when it does, by time.monotonic()."""
        self._began = False
        self._looked_at = self.start
        self._samples: deque[tuple[float, int, dict[str, int]]] = deque([(0.0, 0, fleet.counters())])

    @property
    def waits(self) -> float:
        """Share of the time in which the fleet waited."""
        return self.waited_s / max(self.waited_s + self.played_s, 1e-9)

    def attend(self) -> None:
        """Note whether the fleet plays or waits. To be called often."""
        now = time.monotonic()
        passed_s, self._looked_at = now - self._looked_at, now
        if self._fleet.waits:
            self.waited_s += passed_s
            self.waits_since = now if self.waits_since is None else self.waits_since
        else:
            self.played_s += passed_s if self._began else 0.0
            self.waits_since = None

    def progress(self, units: int, rounds: int) -> Progress:
        counters = self._fleet.counters()
        self._began = self._began or counters["rows"] > 0
        self.attend()
        now = self._looked_at
        if len(self._samples) > 1 and self._samples[-1][0] == self.played_s:
            self._samples.pop()  # it has not played since
        self._samples.append((self.played_s, rounds, counters))
        while len(self._samples) > 2 and self.played_s - self._samples[1][0] > self.WINDOW_S:
            self._samples.popleft()
        then, rounds_then, before = self._samples[0]
        seconds = max(self.played_s - then, 1e-9)
        gained = {name: counters[name] - before[name] for name in counters}
        return Progress(
            units=units,
            total_units=self._total_units,
            begun=counters["decisions"] / self._unit_decisions,
            rounds=rounds,
            elapsed_s=now - self.start,
            rounds_per_min=(rounds - rounds_then) * 60 / seconds,
            evaluations_per_s=gained["rows"] / seconds,
            mean_batch_rows=gained["rows"] / max(gained["batches"], 1),
            inference_busy=gained["busy_ns"] / (seconds * 1e9 * len(self._fleet.plan.devices)),
            workers_busy=gained["worker_busy_ns"] / (seconds * 1e9 * self._fleet.plan.workers),
        )


def decisions_in_a_unit(play: _core.PlaySettings) -> float:
    """About how many on average: a bid and all cards but the last, which is forced, of each seat."""
    decisions = weights = 0.0
    for players, share in play.players:
        for cards, other_share in play.cards:
            if cards * players <= _core.NUM_CARDS:
                sizes = play.rules.hand_sizes(players, cards) if play.games else [cards]
                weights += share * other_share
                decisions += share * other_share * players * sum(sizes)
    return decisions / weights


def run(
    config: SelfPlayConfig,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Progress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    started: float | None = None,
) -> dict[str, Any]:
    """Play until the folder holds what is asked for; returns the summary of `--json`.

    `say` gets lines worth keeping, `show` the state about ten times a second, `stopped` asks whether
    to leave early: finished rounds are committed first. `started` is when the command began, by
    time.monotonic() (default: with this call). Raises ConfigError, RecordError, SegmentError, WorkerDied.
    """
    started = time.monotonic() if started is None else started
    config.check_devices()
    with run_folder(folder, config.identity()) as writer:
        return _run(config, folder, writer, say, show, stopped, started)


@contextmanager
def run_folder(folder: Path, settings: dict[str, Any]) -> Iterator[RecordWriter]:
    """The writer of a run folder, which is made where there is none.

    After an error in here before any round was committed, what the writer made is removed again. Raises
    ConfigError where the folder holds a run of other settings, FolderBusy, RecordError.
    """
    writer = RecordWriter(folder, settings)
    try:
        yield writer
    except ShmzeroError:
        writer.abandon()
        raise
    except BaseException:
        writer.close()
        raise
    writer.close()


def _run(
    config: SelfPlayConfig,
    folder: Path,
    writer: RecordWriter,
    say: Callable[[str], None],
    show: Callable[[Progress], None],
    stopped: Callable[[], bool],
    started: float,
) -> dict[str, Any]:
    wanted = config.games or config.rounds or DEFAULT_ROUNDS
    first, end = config.first, config.first + wanted
    done = writer.units()
    missing = wanted - (done.count_below(end) - done.count_below(first))
    summary: dict[str, Any] = {"records": str(writer.path), "rounds": writer.count(), "new_rounds": 0}
    if missing == 0:
        say(f"{folder} already holds {wanted} {'games' if config.games else 'rounds'}: nothing to do")
        return summary | {"complete": True, "rounds_per_min": 0.0, "distinct_evaluations_per_s": 0.0,
                          "mean_batch_rows": 0.0}
    begun = {unit: records for unit, records in writer.begun().items() if first <= unit < end}
    units = itertools.takewhile(lambda unit: unit < end, done.missing(first))
    checkpoint_seen = file_stamp(config.checkpoint)  # before it is read: what replaces it meanwhile is another
    with Fleet(config, units, missing, _first_version(config, writer), begun) as fleet:
        writer.set_weights(fleet.served.version, fleet.served.digest())
        if not (folder / "config.toml").exists():
            writer.write_file("config.toml", to_toml(_resolved(config, fleet)))
        plan = fleet.plan
        say(
            f"{plan.workers} workers x {plan.lanes} lanes, {len(plan.devices)} inference processes "
            f"({', '.join(plan.devices)}), batches up to {plan.max_batch} rows"
        )
        if config.device == "auto" and config.evaluator == "net" and has_nvidia() and not has_cuda():
            say("there is an NVIDIA device, and torch is installed without CUDA: the network runs on the CPU")
        capped = config.search().to_core().wave_leaves
        if capped < config.leaves_in_flight:
            say(f"leaves in flight: {capped} instead of {config.leaves_in_flight}, a quarter of the simulations")
        if config.evaluator == "net" and config.checkpoint is None:
            say(f"no --checkpoint: the network is freshly initialised from seed {config.seed}")
        meter = Meter(fleet, missing)
        waiting: list[tuple[int, list[bytes]]] = []
        committed = {unit: len(records) for unit, records in begun.items()}  # rounds of games in progress
        units_done = new_rounds = record_bytes = 0
        first_round_s: float | None = None
        committed_at = metrics_at = shown_at = meter.start
        served = fleet.served

        def take(finished: list[tuple[int, list[bytes]]]) -> None:
            nonlocal units_done, first_round_s
            units_done += len(finished)
            waiting.extend(finished)
            if first_round_s is None and any(records for _, records in uncommitted()):
                first_round_s = time.monotonic() - started
                writer.write_file("config.toml", to_toml(_resolved(config, fleet)))

        def uncommitted() -> list[tuple[int, list[bytes]]]:
            parts = [*waiting, *fleet.begun.items()]
            return [(unit, records[committed.get(unit, 0) :]) for unit, records in parts]

        def commit() -> None:
            nonlocal new_rounds, record_bytes, committed
            if found := [part for part in uncommitted() if part[1]]:
                new_rounds += writer.write(found)
                record_bytes += sum(len(record) for _, records in found for record in records)
            committed = {unit: len(records) for unit, records in fleet.begun.items()}
            waiting.clear()

        try:
            while not fleet.done and not stopped():
                take(fleet.poll(TICK_S))
                while fleet.events:
                    say(fleet.events.popleft())
                if fleet.served is not served:
                    served = fleet.served
                    writer.set_weights(served.version, served.digest())
                now = time.monotonic()
                if now - committed_at >= COMMIT_S or len(waiting) >= 10_000:
                    commit()
                    committed_at = now
                if now - shown_at >= 0.1:
                    rounds = new_rounds + sum(len(records) for _, records in uncommitted())
                    progress = meter.progress(units_done, rounds)
                    show(progress)
                    shown_at = now
                    if now - metrics_at >= METRICS_S:
                        writer.append_line("metrics.jsonl", dataclasses.asdict(progress))
                        writer.sync()
                        metrics_at = now
                        if config.follow and file_stamp(config.checkpoint) != checkpoint_seen:
                            checkpoint_seen = file_stamp(config.checkpoint)
                            assert config.checkpoint is not None
                            fleet.publish(config.checkpoint)
            play_s = time.monotonic() - meter.start
            counters = fleet.counters()
        finally:
            take(fleet.close())
            commit()
            writer.sync()
    progress_rounds = max(new_rounds, 1)
    return summary | {
        "rounds": writer.count(),
        "new_rounds": new_rounds,
        "complete": fleet.done,
        "seconds": play_s,
        "rounds_per_min": new_rounds * 60 / play_s,
        "distinct_evaluations_per_s": counters["worker_rows"] / play_s,
        "mean_batch_rows": counters["rows"] / max(counters["batches"], 1),
        "simulations_per_decision": counters["simulations"] / max(counters["decisions"], 1),
        "rows_per_simulation": counters["worker_rows"] / max(counters["simulations"], 1),
        "terminal_share": counters["terminals"] / max(counters["simulations"], 1),
        "record_bytes_per_round": record_bytes / progress_rounds,
        "first_round_s": first_round_s,
        "restarts": fleet.restarts,
        "weights_version": served.version,
    }


def _first_version(config: SelfPlayConfig, writer: RecordWriter) -> int:
    """The version of the weights that a run begins with: that of last time, or the next where they are others."""
    last = writer.weights()
    if last is None:
        return 0
    version, digest = last
    now = None
    with suppress(OSError):  # the fleet says what is wrong
        now = digest_of(config.checkpoint) if config.checkpoint else None
    return version if digest == now else version + 1


def _resolved(config: SelfPlayConfig, fleet: Fleet) -> dict[str, Any]:
    """The settings as the run uses them, in the form `--config` takes."""
    plan = fleet.plan
    search = config.search()
    devices = plan.devices
    same_cpu = all(name == "cpu" for name in devices)
    return dataclasses.asdict(config) | {
        "determinizations": search.determinizations,
        "simulations": search.simulations,
        "workers": plan.workers,
        "device": f"cpu*{len(devices)}" if same_cpu else ",".join(devices),
        "inference_threads": plan.threads,
        "max_batch": plan.max_batch,
    }


@dataclass(frozen=True)
class _Command(SelfPlayConfig):
    config: Path | None = None
    """TOML file that sets any of these; for example a run folder's: --config runs/first/config.toml."""


def parse(arguments: list[str] | None) -> SelfPlayConfig:
    """Settings out of flags over --config over defaults. Raises ConfigError."""
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--rounds", "--games"):
        first.add_argument(name, nargs="?")
    given, _ = first.parse_known_args(arguments)
    settings: dict[str, Any] = {}
    if given.config:
        settings = {"config": Path(given.config)} | read_toml(Path(given.config))
        if not {"rounds", "games"} <= settings.keys():  # a flag of one overrides the other in the file
            if given.games is not None:
                settings.pop("rounds", None)
            if given.rounds is not None:
                settings.pop("games", None)
    default = _Command(**settings)
    command = parse_flags(
        _Command,
        prog="python -m shmzero.selfplay",
        description="Plays Blob against itself and records the rounds. No option is required; "
        "flags override --config.\n\n" + EXAMPLES,
        default=default,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    found = SelfPlayConfig(**{f.name: getattr(command, f.name) for f in dataclasses.fields(SelfPlayConfig)})
    if found.other_network() == OLDER:
        raise ConfigError(f"others names {OLDER!r}, which training runs have; allowed: bots and a checkpoint's file")
    return found


class HasLine(Protocol):
    """A state that can be shown."""

    def line(self) -> str: ...


class Terminal:
    """A live picture on a terminal, a plain line now and then elsewhere; all on standard error."""

    PLAIN_S = 5.0

    def __init__(self, picture: Callable[[Any], Any] | None = None) -> None:
        """`picture`: what rich shows of a state on a terminal (default: its line)."""
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._plain_at = time.monotonic()
        self._picture = picture

    def __enter__(self) -> Terminal:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def show(self, progress: HasLine) -> None:
        from rich.text import Text

        if self._live:
            line = Text(progress.line(), overflow="ellipsis", no_wrap=True)
            self._live.update(self._picture(progress) if self._picture else line, refresh=True)
        elif time.monotonic() - self._plain_at >= self.PLAIN_S:
            self.say(progress.line())
            self._plain_at = time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    with nothing_started():
        config = parse(arguments)
    folder = config.out or Path("runs") / time.strftime("selfplay-%Y%m%d-%H%M%S")
    interrupt = Interrupt()
    with Terminal() as terminal:
        summary = run(config, folder, terminal.say, terminal.show, lambda: interrupt.asked, STARTED)
    print(json.dumps(summary) if config.json else describe(summary))
    return 0 if summary["complete"] else 130


def describe(summary: dict[str, Any]) -> str:
    """The summary for people."""
    if summary["new_rounds"] == 0:
        return f"{summary['rounds']} rounds in {summary['records']}"
    first = summary["first_round_s"]
    return (
        f"{summary['new_rounds']} rounds in {summary['seconds']:.1f} s: "
        f"{summary['rounds_per_min']:,.0f} rounds/min, "
        f"{summary['distinct_evaluations_per_s']:,.0f} distinct evaluations/s, "
        f"mean batch {summary['mean_batch_rows']:.0f} rows, "
        f"{summary['simulations_per_decision']:.0f} simulations a decision"
        + (f", first round after {first:.1f} s" if first is not None else "")
        + ("" if summary["complete"] else "\ninterrupted: the same command with the same --out goes on")
        + f"\n{summary['rounds']} rounds in {summary['records']}"
    )


if __name__ == "__main__":
    sys.exit(main())
