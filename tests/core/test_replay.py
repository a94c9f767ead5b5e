"""Records: what self-play writes, read back as rounds and as training rows; and bytes that are no record."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmzero import SearchConfig, _core, play_rounds
from tests.support import oracle
from tests.support.cases import as_round
from tests.support.fakes import HashEvaluator, RecordingEvaluator, UniformEvaluator

LIGHT = SearchConfig(determinizations=2, simulations=8)
MIXED = {"players": "3-6", "cards": "1-6"}


def positions_of(record: dict) -> list[oracle.Position]:
    """The oracle's position before every action of a record, and the end."""
    truth = oracle.Position([list(hand) for hand in record["hands"]], record["trump"], record["dealer"])
    found = [truth.copy()]
    for action in record["actions"]:
        truth.apply(action)
        found.append(truth.copy())
    return found


def row_keys(features: np.ndarray, masks: np.ndarray) -> list[tuple[bytes, bytes]]:
    """Rows as RecordingEvaluator.seen() gives them."""
    wide = (masks[:, None] >> np.arange(52, dtype=np.uint64) & np.uint64(1)).astype(bool)
    return [(f.astype(np.float32).tobytes(), m.tobytes()) for f, m in zip(features, wide, strict=True)]


def test_record_replayed_has_the_rows_that_the_evaluator_saw() -> None:
    recorder = RecordingEvaluator(HashEvaluator())
    records = play_rounds(recorder, 60, LIGHT, seed=3, **MIXED)
    rows = _core.replay(records)
    assert rows["features"].dtype == np.float16 and rows["masks"].dtype == np.uint64
    keys = row_keys(rows["features"], rows["masks"])
    assert len(keys) == sum(len(_core.decode_record(record)["searched"]) for record in records) > 400
    assert set(keys) <= set(recorder.seen())


def test_record_of_the_policy_alone_replays_every_row_and_answer() -> None:
    """Without simulations a decision is one row, so all that was asked and answered must come back."""
    recorder = RecordingEvaluator(HashEvaluator())
    records = play_rounds(recorder, 40, SearchConfig(simulations=0), seed=4, **MIXED)
    rows = _core.replay(records)
    answers = {}
    for states, masks, policies, values in recorder.batches:
        for s, m, p, v in zip(states, masks, policies, values, strict=True):
            answers[(s.tobytes(), m.tobytes())] = (p, v[0])
    keys = row_keys(rows["features"], rows["masks"])
    assert sorted(keys) == sorted(recorder.seen())
    for key, policy, value in zip(keys, rows["policies"], rows["root_values"], strict=True):
        assert np.allclose(policy, answers[key][0], atol=1e-4)
        assert value == answers[key][1]


@pytest.mark.parametrize("rivalry", [0.0, 0.5])
def test_record_replayed_agrees_with_the_oracle(rivalry: float) -> None:
    records = play_rounds(
        HashEvaluator(), 40, SearchConfig(determinizations=2, simulations=8, rivalry=rivalry), seed=5, **MIXED
    )
    rows = _core.replay(records, 9)
    at = 0
    drawn = []
    for index, data in enumerate(records):
        record = _core.decode_record(data)
        positions = positions_of(record)
        end = positions[-1]
        assert record["id"] == index and end.phase == "done"
        assert (
            record["scores"] == end.scores() and record["bids"] == end.bids and record["tricks_won"] == end.tricks_won
        )
        utilities = end.utilities(rivalry)
        choices = [ply for ply, truth in enumerate(positions[:-1]) if len(truth.legal()) > 1]
        assert [one["ply"] for one in record["searched"]] == choices, "every choice and nothing forced"
        for one in record["searched"]:
            truth = positions[one["ply"]]
            r = as_round(truth)
            assert (
                one["seat"] == truth.seat == rows["seats"][at]
                and rows["ids"][at] == index
                and rows["plies"][at] == one["ply"]
            )
            assert list(one["counts"]) == truth.legal()
            assert np.array_equal(rows["features"][at].astype(np.float32), r.features())
            target = np.zeros(52, np.float32)
            for action, count in one["counts"].items():
                target[r.action_to_canonical(action)] = count / sum(one["counts"].values())
            assert np.allclose(rows["policies"][at], target, atol=1e-6)
            assert rows["values"][at] == pytest.approx(utilities[truth.seat], abs=1e-6)
            seats = [
                s
                for s in range(truth.players)
                if np.array_equal(rows["seat_features"][at].astype(np.float32), r.features(s))
            ]
            assert len(seats) == 1 and rows["seat_values"][at] == pytest.approx(utilities[seats[0]], abs=1e-6)
            drawn.append((seats[0] - truth.seat) % truth.players)
            at += 1
    assert at == len(rows["masks"])
    assert 0.1 < np.mean([seat == 0 for seat in drawn]) < 0.5, "a seat at random, mover or not"


def test_record_seat_seed_draws_other_seats_and_nothing_else() -> None:
    records = play_rounds(HashEvaluator(), 20, LIGHT, seed=6)
    a, b, again = _core.replay(records, 1), _core.replay(records, 2), _core.replay(records, 1)
    assert np.array_equal(a["seat_features"], again["seat_features"])
    assert not np.array_equal(a["seat_features"], b["seat_features"])
    for name in ("features", "masks", "policies", "values", "root_values"):
        assert np.array_equal(a[name], b[name])


@pytest.mark.parametrize("target", ["visits", "improved"])
def test_record_weights_are_the_search_that_anybody_can_repeat(target: str) -> None:
    """Visits come back as whole numbers that sum to the simulations; an improved target as shares."""
    config = SearchConfig(determinizations=2, simulations=8, target=target)  # type: ignore[arg-type]
    for data in play_rounds(HashEvaluator(), 10, config, seed=7):
        record = _core.decode_record(data)
        assert record["target"] == target
        for one in record["searched"]:
            total = sum(one["counts"].values())
            assert total == 16 if target == "visits" else abs(total - 65535) < 20


def test_record_is_small() -> None:
    records = play_rounds(UniformEvaluator(0.5), 50, SearchConfig(), seed=8)
    assert max(map(len, records)) <= 1500


@pytest.mark.parametrize(
    "config", [LIGHT, SearchConfig(determinizations=2, simulations=16, leaves_in_flight=4, noise_fraction=0.25)]
)
def test_play_rounds_any_number_of_lanes_gives_the_same_records(config: SearchConfig) -> None:
    expected = play_rounds(HashEvaluator(), 24, config, seed=9, lanes=1, **MIXED)
    for lanes in (2, 7, 64):
        assert play_rounds(HashEvaluator(), 24, config, seed=9, lanes=lanes, **MIXED) == expected
    assert play_rounds(HashEvaluator(), 12, config, seed=9, lanes=5, **MIXED) == expected[:12]
    assert play_rounds(HashEvaluator(), 24, config, seed=10, lanes=7, **MIXED) != expected


def test_play_rounds_settings_are_drawn_from_the_distribution() -> None:
    records = [
        _core.decode_record(data) for data in play_rounds(UniformEvaluator(), 400, SearchConfig(simulations=0), seed=11)
    ]
    assert {(r["players"], r["cards"]) for r in records} == {(4, 5)}
    for name, values in (("trump", [0, 1, 2, 3, None]), ("dealer", [0, 1, 2, 3])):
        counts = [sum(r[name] == value for r in records) for value in values]
        assert min(counts) > 0.5 * 400 / len(values), f"{name}: {counts}"
    assert len({str(r["hands"]) for r in records}) == 400


def test_play_rounds_games_carry_totals_from_round_to_round() -> None:
    records = [
        _core.decode_record(data)
        for data in play_rounds(
            HashEvaluator(), 2, SearchConfig(simulations=0), seed=12, players="3", cards="3", games=True
        )
    ]
    assert [r["cards"] for r in records] == [3, 2, 1, 1, 1, 2, 3] * 2
    assert len({r["id"] for r in records}) == 14
    totals = [0, 0, 0]
    for index, r in enumerate(records):
        if index % 7 == 0:
            totals = [0, 0, 0]
        assert r["round_of_game"] == index % 7 and r["totals_before"] == totals
        assert r["dealer"] == (records[index - index % 7]["dealer"] + index % 7) % 3
        totals = [a + b for a, b in zip(totals, r["scores"], strict=True)]


# --- which action is played ------------------------------------------------------------------------------------------------------


def played_weights(config: SearchConfig, n: int) -> list[tuple[int, dict[int, int]]]:
    """(place of the action played among the decision's, its weights by action) of every searched decision."""
    found = []
    for data in play_rounds(HashEvaluator(), n, config, seed=13):
        record = _core.decode_record(data)
        found += [(record["actions"][one["ply"]], one["counts"]) for one in record["searched"]]
    return found


def test_temperature_zero_plays_a_most_visited_action() -> None:
    config = SearchConfig(determinizations=2, simulations=8, temperature=0.0)
    assert all(weights[action] == max(weights.values()) for action, weights in played_weights(config, 40))


def test_temperature_one_plays_actions_in_proportion_to_their_visits() -> None:
    played = played_weights(LIGHT, 250)
    expected = sum(max(w.values()) / sum(w.values()) for _, w in played)
    observed = sum((w[a] == max(w.values())) / sum(v == max(w.values()) for v in w.values()) for a, w in played)
    spread = np.sqrt(len(played) * 0.25)
    assert abs(observed - expected) < 4 * spread
    assert any(w[a] < max(w.values()) for a, w in played)


def test_temperature_first_decisions_vary_and_later_ones_are_the_best() -> None:
    config = SearchConfig(
        determinizations=2, simulations=8, temperature=1.0, temperature_decisions=3, final_temperature=0.0
    )
    early: list[Any] = []
    late: list[Any] = []
    for data in play_rounds(HashEvaluator(), 60, config, seed=14):
        record = _core.decode_record(data)
        for index, one in enumerate(record["searched"]):
            best = one["counts"][record["actions"][one["ply"]]] == max(one["counts"].values())
            (early if index < 3 else late).append(best)
    assert all(late) and not all(early)


def test_temperature_zero_of_a_policy_alone_keeps_its_share_of_random_moves() -> None:
    config = SearchConfig(simulations=0, temperature=0.0, noise_fraction=0.5)
    played = [(w[a] == max(w.values()), len(w)) for a, w in played_weights(config, 250)]
    expected = sum(0.5 + 0.5 / number for _, number in played)
    assert abs(sum(best for best, _ in played) - expected) < 4 * np.sqrt(len(played) * 0.25)
    quiet = dataclasses.replace(config, noise_fraction=0.0)
    assert all(w[a] == max(w.values()) for a, w in played_weights(quiet, 40))


# --- bytes that are no record ----------------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(data=st.binary(max_size=400))
def test_decode_random_bytes_raise_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        _core.decode_record(data)
    with pytest.raises(ValueError):
        _core.replay([data])


@settings(max_examples=400, deadline=None)
@given(data=st.binary(max_size=300), players=st.integers(3, 8), cards=st.integers(1, 17))
def test_decode_random_bytes_behind_a_plausible_head_raise_value_error(data: bytes, players: int, cards: int) -> None:
    head = bytes([_core.RECORD_VERSION, players, cards, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError):
        _core.decode_record(head + data)


def test_decode_truncated_or_lengthened_record_raises_value_error() -> None:
    (data,) = play_rounds(HashEvaluator(), 1, LIGHT, seed=15)
    for size in range(len(data)):
        with pytest.raises(ValueError, match=f"{size} bytes"):
            _core.decode_record(data[:size])
    with pytest.raises(ValueError):
        _core.decode_record(data + b"\0")


def test_decode_record_with_bytes_changed_is_refused_or_a_legal_round() -> None:
    rng = random.Random(16)
    refused = 0
    for data in play_rounds(HashEvaluator(), 20, LIGHT, seed=16, **MIXED):
        for _ in range(150):
            bad = bytearray(data)
            for _ in range(rng.randint(1, 3)):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            try:
                record = _core.decode_record(bytes(bad))
            except ValueError:
                refused += 1
                continue
            if bad[5] == 0 and bad[6] == 0:  # the oracle knows the default rules
                assert positions_of(record)[-1].scores() == record["scores"]
            assert len(_core.replay([bytes(bad)])["masks"]) == len(record["searched"])
    assert refused > 500


FIRST_CARD = 22  # version and settings 8 bytes, id 8, rivalry 4, rounds of the game 2


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (1, 2, "players is 2"),
        (1, 9, "players is 9"),
        (2, 0, "cards is 0"),
        (2, 14, "cards is 14"),
        (3, 5, "trump is 5"),
        (4, 4, "dealer is 4"),
        (6, 3, "scoring is 3"),
        (7, 9, "target is 9"),
        (19, 0xFF, "finite|late|legal|allowed"),
        (FIRST_CARD, 52, "card is 52"),
        (FIRST_CARD + 20, 17, "action 17 is not legal"),
        (FIRST_CARD + 20, 52, "action is 52"),
    ],
)
def test_decode_impossible_field_names_it(place: int, value: int, named: str) -> None:
    (data,) = play_rounds(HashEvaluator(), 1, LIGHT, seed=18)
    bad = bytearray(data)
    bad[place] = value
    if place == 19:
        bad[18] = 0xC0  # a NaN for the rivalry
    with pytest.raises(ValueError, match=named):
        _core.decode_record(bytes(bad))


def test_decode_card_dealt_twice_is_refused() -> None:
    (data,) = play_rounds(HashEvaluator(), 1, LIGHT, seed=18)
    bad = bytearray(data)
    bad[FIRST_CARD + 1] = bad[FIRST_CARD]
    with pytest.raises(ValueError, match="twice"):
        _core.decode_record(bytes(bad))


def test_decode_other_version_names_it() -> None:
    (data,) = play_rounds(HashEvaluator(), 1, LIGHT, seed=17)
    with pytest.raises(ValueError, match="version is 77"):
        _core.decode_record(b"\x4d" + data[1:])
