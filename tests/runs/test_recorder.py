"""What a run keeps of what an executor finishes: all of it, once, and games that are not finished as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shmzero import SearchConfig, play_rounds
from shmzero.engine.fleet import Fleet
from shmzero.errors import RecordError, WorkerDied
from shmzero.mcts.evaluators import HashEvaluator
from shmzero.runs.record_writer import RecordWriter, run_folder
from shmzero.runs.recorder import Executor, Recorder, Unit
from shmzero.runs.records import Records

ROUNDS = 5
"""Of each of the games."""


class Scripted:
    """An executor that does in each poll what a script says: it finishes so many more rounds of a unit."""

    def __init__(self, games: dict[int, list[bytes]], *script: dict[int, int], known: Recorder | None = None) -> None:
        self._games = games
        self._script = list(script)
        self.in_progress = {unit: list(records) for unit, records in (known.in_progress if known else {}).items()}
        self._finished: list[Unit] = []
        self.fails = False

    @property
    def done(self) -> bool:
        return not self._script and not self._finished

    def poll(self, timeout_s: float) -> list[Unit]:
        for unit, rounds in self._script.pop(0).items():
            played = len(self.in_progress.get(unit, []))
            records = self._games[unit][: played + rounds]
            if len(records) < ROUNDS:
                self.in_progress[unit] = records
            else:
                self.in_progress.pop(unit, None)
                self._finished.append((unit, records))
        if self.fails:
            raise WorkerDied("a worker keeps dying")
        return self.close()

    def close(self) -> list[Unit]:
        finished, self._finished = self._finished, []
        return finished


@pytest.fixture(scope="module")
def games() -> dict[int, list[bytes]]:
    search = SearchConfig(simulations=0)
    records = play_rounds(HashEvaluator(), 4, search, players="3", cards="2", games=True)
    return {unit: records[unit * ROUNDS : (unit + 1) * ROUNDS] for unit in range(4)}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RecordWriter]:
    with run_folder(tmp_path / "run", {}) as writer:
        yield writer


def recorded(writer: RecordWriter) -> list[bytes]:
    with Records(writer.folder.path) as records:
        return list(records)


def test_fleet_is_an_executor() -> None:
    def takes(executor: type[Executor]) -> None:
        pass

    takes(Fleet)
    assert all(hasattr(Fleet, name) for name in ("poll", "close", "done"))


def test_recorder_commits_rounds_of_games_in_progress_each_once(
    writer: RecordWriter, games: dict[int, list[bytes]]
) -> None:
    recorder = Recorder(writer, range(3), commit_s=0.0)
    assert recorder.num_missing() == 3 and list(recorder.missing()) == [0, 1, 2] and recorder.in_progress == {}
    executor = Scripted(games, {0: 2, 1: 1}, {0: 3, 1: 1}, {})
    for unit, rounds in ((0, 3), (1, 7), (1, 7)):
        recorder.poll(executor, 0.0)
        assert (recorder.finished_units, recorder.new_rounds, recorder.waiting_rounds()) == (unit, rounds, 0)
    assert recorded(writer) == games[0] + games[1][:2]
    recorder.finish(executor)
    assert recorder.record_bytes == sum(map(len, recorded(writer)))

    later = Recorder(writer, range(3))
    assert later.in_progress == {1: games[1][:2]} and list(later.missing()) == [1, 2] and later.rounds == 7
    executor = Scripted(games, {1: 3, 2: 4}, known=later)
    later.poll(executor, 0.0)
    assert later.new_rounds == 0 and later.waiting_rounds() == 7, "not due yet"
    later.finish(executor)
    assert later.new_rounds == 7 and recorded(writer) == games[0] + games[1] + games[2][:4]
    assert list(later.missing()) == [2] and later.num_missing() == 1


def test_recorder_keeps_to_its_units(writer: RecordWriter, games: dict[int, list[bytes]]) -> None:
    writer.write([(0, games[0][:1]), (1, games[1]), (2, games[2][:2])])
    recorder = Recorder(writer, range(1, 4))
    assert list(recorder.missing()) == [2, 3] and recorder.num_missing() == 2 and set(recorder.in_progress) == {2}


def test_recorder_of_whole_units_tells_them_once_they_are_committed(
    writer: RecordWriter, games: dict[int, list[bytes]]
) -> None:
    told: list[int] = []

    def committed(units: list[Unit]) -> None:
        assert set(recorded(writer)) >= {record for _, records in units for record in records}
        told.extend(unit for unit, _ in units)

    recorder = Recorder(writer, range(10**12), "unit", 0.0, committed)
    first = Scripted(games, {0: 5, 1: 2})
    recorder.poll(first, 0.0)
    recorder.finish(first)
    assert told == [0] and recorder.rounds == 5 and recorder.in_progress == {1: games[1][:2]}
    second = Scripted(games, {1: 3}, known=recorder)  # of the next stage
    recorder.poll(second, 0.0)
    assert told == [0, 1] and recorded(writer) == games[0] + games[1]


def test_recorder_keeps_what_was_finished_before_an_error(writer: RecordWriter, games: dict[int, list[bytes]]) -> None:
    recorder = Recorder(writer, range(4))
    executor = Scripted(games, {0: 5, 1: 1})
    executor.fails = True
    with pytest.raises(WorkerDied):
        recorder.poll(executor, 0.0)
    recorder.finish(executor)
    assert recorded(writer) == games[0] + games[1][:1] and recorder.finished_units == 1


def test_recorder_tries_again_what_could_not_be_written(
    writer: RecordWriter, games: dict[int, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(units: object) -> int:
        raise RecordError("no space left on device")

    recorder = Recorder(writer, range(4), commit_s=0.0)
    executor = Scripted(games, {0: 5})
    with monkeypatch.context() as patch, pytest.raises(RecordError):
        patch.setattr(writer, "write", full)
        recorder.poll(executor, 0.0)
    assert list(recorder.missing()) == [0, 1, 2, 3] and recorder.waiting_rounds() == 5
    recorder.finish(executor)
    assert recorded(writer) == games[0] and list(recorder.missing()) == [1, 2, 3]
