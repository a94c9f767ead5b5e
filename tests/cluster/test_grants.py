"""Grants of units to engines that answer late, twice or never: every unit is finished once, with all its records."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from shmzero.cluster.grants import Grants
from shmzero.cluster.messages import Part

ROUNDS = 3
"""Rounds of a game."""


def record(unit: int, number: int) -> bytes:
    return f"{unit}.{number}".encode()


@dataclass
class Played:
    """What an engine has of a unit: so many rounds are finished, so many of these were sent."""

    finished: int
    sent: int


@dataclass
class FakeEngine:
    """Plays whatever it was granted, as far as a test lets it."""

    name: str
    units: dict[int, Played] = field(default_factory=dict)

    def take(self, granted: dict[int, list[bytes]]) -> None:
        for unit, records in granted.items():
            assert records == [record(unit, number) for number in range(len(records))]
            self.units[unit] = Played(len(records), len(records))

    def play(self, unit: int, rounds: int, length: int) -> Part:
        """Finish some rounds of a unit, and tell of them."""
        played = self.units[unit]
        first, played.finished = played.sent, min(length, played.finished + rounds)
        played.sent = played.finished
        is_last = played.finished == length
        if is_last:
            del self.units[unit]
        return Part(unit, first, is_last, [record(unit, number) for number in range(first, played.finished)])


@given(data=st.data(), num_units=st.integers(1, 12), length=st.sampled_from([1, ROUNDS]))
def test_every_unit_is_finished_once_whatever_becomes_of_the_engines(
    data: st.DataObject, num_units: int, length: int
) -> None:
    grants = Grants(iter(range(num_units)), num_units, {})
    engines = [FakeEngine(f"engine {number}") for number in range(3)]
    told: list[tuple[str, Part]] = []
    found: dict[int, list[bytes]] = {}
    new = 0

    def take_finished() -> None:
        for unit, records in grants.take_finished():
            assert unit not in found
            found[unit] = records

    for step in range(data.draw(st.integers(0, 60))):
        number = data.draw(st.integers(0, 2))
        engine = engines[number]
        match data.draw(st.sampled_from(["grant", "play", "play", "again", "lose"])):
            case "grant":
                engine.take(grants.grant(engine.name, data.draw(st.integers(0, 4))))
            case "play" if engine.units:
                part = engine.play(
                    data.draw(st.sampled_from(sorted(engine.units))), data.draw(st.integers(1, 2)), length
                )
                told.append((engine.name, part))
                new += grants.take(engine.name, part)
            case "again" if told:  # an answer that comes a second time, or of an engine that was lost
                new += grants.take(*data.draw(st.sampled_from(told)))
            case "lose":
                grants.give_back(engine.name)
                engines[number] = FakeEngine(f"{engine.name} after {step}")
        take_finished()
    for engine in engines:  # those that are there finish all that is left
        while grants.left and (granted := grants.grant(engine.name, 5)) | engine.units:
            engine.take(granted)
            for unit in sorted(engine.units):
                new += grants.take(engine.name, engine.play(unit, length, length))
            take_finished()
        grants.give_back(engine.name)
        engine.units.clear()
    last = FakeEngine("last")
    while grants.left:
        last.take(grants.grant(last.name, 5))
        for unit in sorted(last.units):
            new += grants.take(last.name, last.play(unit, length, length))
        take_finished()
    assert found == {unit: [record(unit, number) for number in range(length)] for unit in range(num_units)}
    assert new == num_units * length and grants.in_progress == {}


def test_game_goes_on_elsewhere_from_the_round_that_was_told() -> None:
    grants = Grants(iter([7]), 1, {})
    assert grants.grant("a", 9) == {7: []} and grants.num_granted("a") == 1
    assert grants.take("a", Part(7, 0, False, [b"0", b"1"])) == 2
    assert grants.in_progress == {7: [b"0", b"1"]}
    assert grants.give_back("a") == 1
    assert grants.grant("b", 9) == {7: [b"0", b"1"]}
    assert grants.take("a", Part(7, 2, True, [b"2"])) == 0 and grants.num_dropped == 1
    assert grants.take("b", Part(7, 3, True, [b"3"])) == 0, "a round is missing before it"
    assert grants.take("b", Part(7, 2, True, [b"2"])) == 1
    assert grants.take_finished() == [(7, [b"0", b"1", b"2"])] and grants.left == 0


def test_engine_with_nothing_to_do_gets_half_of_what_another_still_has() -> None:
    grants = Grants(iter(range(5)), 5, {})
    assert list(grants.grant("slow", 9)) == [0, 1, 2, 3, 4]
    assert list(grants.grant("idle", 9)) == [0, 1, 2]
    assert grants.grant("idle", 9) == {}, "it has something to do"
    assert grants.take("idle", Part(0, 0, True, [b"idle"])) == 1
    assert grants.take("slow", Part(0, 0, True, [b"slow"])) == 0
    assert grants.take("slow", Part(1, 0, True, [b"slow"])) == 1
    assert grants.give_back("slow") == 2, "the idle one has number 2 as well"
    assert grants.take("idle", Part(2, 0, True, [b"idle"])) == 1
    assert list(grants.grant("idle", 9)) == [3, 4]
    for unit in (3, 4):
        grants.take("idle", Part(unit, 0, True, [b"idle"]))
    assert dict(grants.take_finished()) == {0: [b"idle"], 1: [b"slow"], 2: [b"idle"], 3: [b"idle"], 4: [b"idle"]}


def test_games_that_a_run_had_begun_are_granted_with_their_records() -> None:
    grants = Grants(iter([3, 4]), 2, {4: [b"0"]})
    assert grants.grant("a", 9) == {3: [], 4: [b"0"]}
