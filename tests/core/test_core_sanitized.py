"""What the sanitizer build runs: every path of the core, in this process, briefly."""

from __future__ import annotations

import random

import numpy as np
import pytest

from shmzero import BatchedEvaluator, SearchConfig, _core, play_rounds, search
from shmzero.errors import ModelFailed
from shmzero.matches.agents import make_agent
from shmzero.matches.duplicate import match_plan, play_tables
from shmzero.mcts.evaluators import HashEvaluator
from tests.support.cases import as_round, random_position

CONFIGS = [
    SearchConfig(determinizations=2, simulations=12, noise_fraction=0.25),
    SearchConfig(determinizations=2, simulations=12, leaves_in_flight=3, opponents="maximise"),
    SearchConfig(determinizations=3, simulations=16, root="halving", target="improved"),
    SearchConfig(determinizations=2, simulations=16, leaves_in_flight=4, solved_cards=8),
    SearchConfig(simulations=0),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("games", [False, True])
def test_core_plays_records_and_replays(config: SearchConfig, games: bool) -> None:
    records = play_rounds(HashEvaluator(), 4, config, players="3-8", cards="1-6", games=games, lanes=3)
    rows = _core.replay(records, 1)
    assert len(rows["masks"]) > 0 and np.isfinite(rows["features"]).all()
    assert np.allclose(rows["policies"].sum(axis=1), 1)


def test_core_survives_random_positions_and_determinizations() -> None:
    rng = random.Random(5)
    for _ in range(60):
        players = rng.randint(3, 8)
        r = as_round(random_position(rng, players, rng.randint(1, 52 // players)))
        for seat in range(players):
            r.features(seat)
        assert r.determinize(rng.getrandbits(64)).legal_actions() == r.legal_actions()
        search(r, HashEvaluator(), SearchConfig(determinizations=1, simulations=8), seed=1)


def test_core_full_deal_rows_wrap_and_are_dealt_anew() -> None:
    records = play_rounds(HashEvaluator(), 6, CONFIGS[-1], players="3-8", cards="1-6", lanes=3)
    columns = {"features": ("float16", _core.NUM_FEATURES), "masks": ("uint64", 0),
               "hands": ("uint8", _core.NUM_HANDS * _core.NUM_CARDS), "silent": ("uint8", 0), "actions": ("uint8", 0),
               "utilities": ("float32", 0), "policies": ("float16", _core.NUM_ACTIONS),
               "seat_features": ("float16", _core.NUM_FEATURES), "seat_utilities": ("float32", 0),
               "tricks": ("uint8", 0), "versions": ("uint32", 0)}  # fmt: skip
    arrays = {name: np.zeros((50, width) if width else 50, dtype) for name, (dtype, width) in columns.items()}
    assert _core.replay_full_deal(records, arrays, at=45) > 50
    rows, dealt = _core.redeal(arrays["hands"], arrays["silent"], 4)
    assert len(rows) > 0 and np.array_equal(dealt.sum(axis=1), arrays["hands"][rows].sum(axis=1))


def test_core_plays_matches_on_threads_and_solves() -> None:
    agents = [make_agent(name) for name in ("threshold", "mc20", "uct2x10+solver")]
    agents.append(make_agent((HashEvaluator(), CONFIGS[0])))
    for games in (False, True):
        tables = np.tile(np.arange(8, dtype=np.uint8) % 4, (3, 1))
        rounds = play_tables(agents, tables, match_plan("3-8", "1-4", "random", games, 1), threads=3)
        assert set(rounds["deal"]) == {0, 1, 2}
    for seed in range(20):
        assert len(_core.solve(_core.Round.deal(players=3, cards=2, seed=seed))[1]) == 3


def test_decode_record_of_mangled_bytes_is_refused_or_a_round() -> None:
    rng = random.Random(6)
    record = play_rounds(HashEvaluator(), 1, CONFIGS[0])[0]
    for size in range(len(record)):
        with pytest.raises(ValueError, match="record"):
            _core.decode_record(record[:size])
    refused = 0
    for _ in range(500):
        mangled = bytearray(record)
        for _ in range(rng.randint(1, 4)):
            mangled[rng.randrange(len(mangled))] = rng.randrange(256)
        try:
            assert len(_core.decode_record(bytes(mangled))["actions"]) > 0
        except ValueError:
            refused += 1
    assert 100 < refused < 500


def test_core_slots_carry_rows_of_odd_widths_and_report_failures() -> None:
    def model(states: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (states > 1).any():
            raise ArithmeticError("x" * 500)
        return masks * states[:, :1], states[:, :2]

    rng = np.random.default_rng(1)
    for wire, action_dim in (("float32", 67), ("float16", 3)):
        with BatchedEvaluator(model, 5, action_dim, 2, wire=wire, slots=3, rows_per_slot=7) as evaluator:
            for rows in (1, 7, 50):
                states, masks = rng.random((rows, 5), np.float32).astype(wire), rng.random((rows, action_dim)) < 0.5
                policies, values = evaluator.evaluate_many(states, masks)
                assert np.array_equal(policies, masks * states[:, :1].astype(np.float32))
                assert np.array_equal(values, states[:, :2])
            with evaluator.request(2) as r:
                r.states[:], r.masks[:] = 0.5, r.pack_masks(np.ones((2, action_dim), bool))
                r.run()
                assert (r.policies == 0.5).all()
            with pytest.raises(ModelFailed, match="xxx$"):
                evaluator.evaluate(np.full(5, 2.0), np.ones(action_dim, bool))
