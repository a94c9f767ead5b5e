"""Search: what it may know, what it must find, what it must count.

Truth comes from `oracle.MaxnSolver` (known hands), from combinatorics (the lone trump six) and from duplicate deals (a network).
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

import shmzero
from shmzero import SearchConfig, _core, search
from shmzero.errors import ConfigError
from tests.support import oracle
from tests.support.cases import as_round, random_position, round_of
from tests.support.fakes import HashEvaluator, RecordingEvaluator, ScriptedEvaluator, UniformEvaluator

CONFIGS = {
    "plain": SearchConfig(determinizations=3, simulations=8),
    "four in flight": SearchConfig(determinizations=2, simulations=16, leaves_in_flight=4),
    "max^n": SearchConfig(determinizations=2, simulations=8, opponents="maximise"),
    "halving": SearchConfig(determinizations=2, simulations=12, root="halving"),
    "improved target": SearchConfig(determinizations=2, simulations=8, target="improved"),
    "noise": SearchConfig(determinizations=2, simulations=8, noise_fraction=0.25),
    "rivalry": SearchConfig(determinizations=2, simulations=8, rivalry=0.5),
    "policy alone": SearchConfig(simulations=0),
}


def same(a: shmzero.SearchResult, b: shmzero.SearchResult) -> bool:
    return (
        a.visits.tobytes() == b.visits.tobytes()
        and a.q.tobytes() == b.q.tobytes()
        and a.policy.tobytes() == b.policy.tobytes()
        and np.float32(a.value).tobytes() == np.float32(b.value).tobytes()
        and (a.evaluations, a.simulations) == (b.evaluations, b.simulations)
    )


def undecided_positions(
    seed: int, num: int, players: tuple[int, int] = (3, 5), most_cards: int = 5
) -> list[oracle.Position]:
    """Random positions in which the seat to act has a choice."""
    rng = random.Random(seed)
    found: list[oracle.Position] = []
    while len(found) < num:
        truth = random_position(rng, rng.randint(*players), rng.randint(1, most_cards))
        if len(truth.legal()) > 1:
            found.append(truth)
    return found


# --- what search may know -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_search_any_determinization_of_the_root_gives_the_same_result_bit_for_bit() -> None:
    """200 positions, 50 worlds each, every configuration in turn."""
    evaluator = HashEvaluator()
    differing_hands = 0
    for index, truth in enumerate(undecided_positions(1, 200)):
        config = list(CONFIGS.values())[index % len(CONFIGS)]
        r = as_round(truth)
        expected = search(r, evaluator, config, seed=index)
        for k in range(50):
            world = r.determinize(k)
            differing_hands += world.hands != r.hands
            assert same(search(world, evaluator, config, seed=index), expected), oracle.deal_text(truth.hands)
    assert differing_hands > 9000


def test_search_never_shows_the_evaluator_a_world_row_that_only_the_truth_explains() -> None:
    """All rows asked for, not only the result, are the same from any world."""
    for index, truth in enumerate(undecided_positions(2, 30)):
        r = as_round(truth)
        asked = []
        for world in (r, r.determinize(1), r.determinize(2)):
            recorder = RecordingEvaluator(HashEvaluator())
            search(world, recorder, CONFIGS["plain"], seed=index)
            asked.append(recorder.seen())
        assert asked[0] == asked[1] == asked[2]


@pytest.mark.parametrize("name", CONFIGS)
def test_search_same_seed_is_repeatable_and_leaves_the_round_alone(name: str) -> None:
    for truth in undecided_positions(3, 10):
        r = as_round(truth)
        before = (r.hands, r.bids, r.trick)
        assert same(
            search(r, HashEvaluator(), CONFIGS[name], seed=4), search(r, HashEvaluator(), CONFIGS[name], seed=4)
        )
        assert (r.hands, r.bids, r.trick) == before


def test_search_known_hands_uses_the_true_deal() -> None:
    # Seat 0 leads its last but one card and has bid 1: only against the true hands is the king of hearts surely high.
    r = round_of("HK S2 | HQ S3 | HJ S4", None, 2, "1 0 0")
    config = SearchConfig(determinizations=1, simulations=200, known_hands=True, opponents="maximise")
    a = search(r, UniformEvaluator(), config, seed=0)
    b = search(r, UniformEvaluator(), config, seed=1)
    assert np.array_equal(a.visits, b.visits)


# --- what search must find ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_search_known_hands_maximise_finds_a_maxn_choice(seed: int) -> None:
    """Of 100 small positions 99 %, as one of two exact solvers, who break ties by the first and by the last action."""
    rng = random.Random(seed)
    config = SearchConfig(determinizations=1, simulations=12000, known_hands=True, opponents="maximise")
    right = total = 0
    missed = []
    while total < 100:
        players = rng.choice([3, 3, 4])
        truth = random_position(rng, players, rng.randint(1, 3 if players == 3 else 2))
        accepted: set[int] = set()
        for last in (False, True):
            _, values = oracle.MaxnSolver(truth, last).best_actions(truth)
            accepted |= {a for a, v in values.items() if v == max(values.values())}
        if accepted == set(truth.legal()):
            continue  # nothing to get wrong
        total += 1
        choice = search(as_round(truth), UniformEvaluator(), config, seed=total).action
        right += choice in accepted
        if choice not in accepted:
            missed.append(f"{oracle.deal_text(truth.hands)} bids {truth.bids}: {choice}, not {accepted}")
    assert right >= 99, "; ".join(missed)


def test_search_solved_positions_have_the_exact_values_of_maxn() -> None:
    """Where simulations are enough to see everything, q is what the solver says who prefers the lowest of equals."""
    rng = random.Random(5)
    config = SearchConfig(determinizations=1, simulations=3000, known_hands=True, opponents="maximise")
    for number in range(60):
        truth = random_position(rng, 3, 2)
        if len(truth.legal()) < 2:
            continue
        _, values = oracle.MaxnSolver(truth, False).best_actions(truth)
        result = search(as_round(truth), UniformEvaluator(), config, seed=number)
        for action, points in values.items():
            assert result.q[action] == pytest.approx(points / (10 + truth.cards), abs=1e-6)


def lone_six_expectation(num_worlds: int) -> float:
    """Chance that among so many worlds bidding 1 has the better mean: 11 k > 10 (worlds - k) with k won."""
    p = math.comb(43, 4) / math.comb(51, 4)  # none of the eight higher trumps among four of 51 unseen cards
    return sum(
        math.comb(num_worlds, k) * p**k * (1 - p) ** (num_worlds - k)
        for k in range(num_worlds + 1)
        if 11 * k > 10 * (num_worlds - k)
    )


def lone_six_search(num_worlds: int, simulations: int, seed: int) -> shmzero.SearchResult:
    """First to bid with the six of trump alone; the others bid 0 where they may, which decides nothing here."""

    def policy(state: np.ndarray, mask: np.ndarray) -> np.ndarray:
        at_root = not state[156:164].any()
        return np.where(np.arange(52) > 0, 1.0 if at_root else 1e-9, 1.0)

    r = round_of("S6 | S2 | H2 | C2 | D2", "S", 4)
    config = SearchConfig(determinizations=num_worlds, simulations=simulations)
    return search(r, ScriptedEvaluator(policy, lambda state: 0.5), config, seed=seed)


def test_search_lone_trump_six_bids_one_as_often_as_the_worlds_say_and_surer_with_more() -> None:
    """A mean over worlds, not a majority of them: at 501 worlds bidding 1 is right in about four of five cases."""
    shares = []
    for num_worlds, num_searches in ((3, 400), (61, 200), (501, 120)):
        expected = lone_six_expectation(num_worlds)
        results = [lone_six_search(num_worlds, 80, seed) for seed in range(num_searches)]
        share = sum(result.q[1] > result.q[0] for result in results) / num_searches
        deviation = math.sqrt(expected * (1 - expected) / num_searches)
        assert abs(share - expected) < 3 * deviation, f"{num_worlds} worlds: {share:.3f}, expected {expected:.3f}"
        played = sum(result.action == 1 for result in results) / num_searches
        assert abs(played - share) < 0.1, f"{num_worlds} worlds: bids 1 in {played:.3f}, better in {share:.3f}"
        shares.append(share)
    assert max(shares[:2]) < shares[2], shares


@pytest.mark.parametrize("root", ["puct", "halving"])
def test_search_card_that_meets_the_bid_is_found(root: str) -> None:
    # Seat 2 has bid 0, is last to the trick and must follow: the deuce ducks, the ace takes. What follows is forced.
    r = round_of("S5 H3 | S6 H4 | S2 SA", None, 2, "1 0 0 | S5 S6")
    config = SearchConfig(determinizations=4, simulations=40, root=root)  # type: ignore[arg-type]
    result = search(r, UniformEvaluator(0.5), config, seed=0)
    assert result.action == oracle.card("S2")
    assert result.q[oracle.card("SA")] == 0 and result.q[oracle.card("S2")] > 0.4


# --- what search must count ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", [1, 2, 3, 4, 8, 16, 64, 1000])
@pytest.mark.parametrize("opponents", ["policy", "maximise"])
def test_search_any_leaves_in_flight_totals_are_exact(leaves: int, opponents: str) -> None:
    """Every simulation is counted once and no in-flight count stays behind, on large trees and on trees of terminals."""
    for truth in undecided_positions(21, 30):
        config = SearchConfig(determinizations=3, simulations=24, leaves_in_flight=leaves, opponents=opponents)
        result = search(as_round(truth), HashEvaluator(), config, seed=1)
        legal = truth.legal()
        assert result.visits.sum() == result.simulations == 3 * 24
        assert result.visits.dtype == np.uint32 and result.q.dtype == result.policy.dtype == np.float32
        assert set(np.flatnonzero(result.visits)) <= set(legal)
        assert set(np.flatnonzero(result.policy)) <= set(legal)
        assert result.policy.sum() == pytest.approx(1, abs=1e-5)
        mean = float((result.q * result.visits).sum() / result.visits.sum())
        assert result.value == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("leaves", [1, 4, 16])
@pytest.mark.parametrize("opponents", ["policy", "maximise"])
@pytest.mark.parametrize("rivalry", [0.0, 0.5])
def test_search_terminal_leaves_in_flight_backs_up_their_exact_utility(
    leaves: int, opponents: str, rivalry: float
) -> None:
    """After the last bid of a one-card round everything is forced: Q is the utility, whatever was in flight."""
    truth = oracle.position("SA | HK | CA | DA", None, 3, "1 0 1")
    config = SearchConfig(
        determinizations=1,
        simulations=64,
        leaves_in_flight=leaves,
        known_hands=True,
        opponents=opponents,
        rivalry=rivalry,  # type: ignore[arg-type]
    )
    result = search(as_round(truth), UniformEvaluator(), config, seed=0)
    for bid in truth.legal():
        end = truth.copy()
        for action in [bid, *oracle.cards("SA HK CA DA")]:
            end.apply(action)
        assert result.q[bid] == pytest.approx(end.utilities(rivalry)[3], abs=1e-6)
    assert result.visits.sum() == result.terminals == 64 and result.visits[0] > result.visits[1]


@pytest.mark.parametrize("root", ["puct", "halving"])
@pytest.mark.parametrize("leaves", [1, 2, 4, 8, 15, 60, 500])
def test_search_any_leaves_in_flight_visits_do_not_collapse_to_uniform_or_to_the_prior(leaves: int, root: str) -> None:
    from_uniform, from_prior, gain = [], [], []
    for index, truth in enumerate(undecided_positions(31, 40, (3, 4), 4)):
        r = as_round(truth)
        config = SearchConfig(determinizations=2, simulations=60, leaves_in_flight=leaves, root=root)
        result = search(r, HashEvaluator(), config, seed=index)
        prior = search(r, HashEvaluator(), SearchConfig(simulations=0), seed=index).policy
        legal = truth.legal()
        shares = result.visits[legal] / result.visits.sum()
        from_uniform.append(np.abs(shares - 1 / len(legal)).sum() / 2)
        from_prior.append(np.abs(shares - prior[legal]).sum() / 2)
        gain.append(float((shares - prior[legal]) @ result.q[legal]))
    assert np.mean(from_uniform) > 0.1 and np.mean(from_prior) > 0.05
    assert np.mean(gain) > 0.01, "visits go where the values are"


def test_search_q_and_value_are_means_of_what_was_backed_up() -> None:
    """With a constant evaluator and no terminal in reach every value is that constant."""
    rng = random.Random(3)
    truth = random_position(rng, 4, 8, 0)
    result = search(as_round(truth), UniformEvaluator(0.25), SearchConfig(determinizations=4, simulations=20), seed=0)
    assert np.all(result.q[result.visits > 0] == np.float32(0.25))
    assert result.value == pytest.approx(0.25, abs=1e-6)


def test_search_value_comes_from_the_root_seats_own_row() -> None:
    """Rows of other seats are worth a lot here; none of it may reach the root."""
    truth = random_position(random.Random(8), 4, 6, 0)
    r = as_round(truth)
    hand = {int(i) for i in np.flatnonzero(r.features()[:52])}

    def value(state: np.ndarray) -> float:
        return 0.25 if {int(i) for i in np.flatnonzero(state[:52])} <= hand else 0.9

    # Bidding leaves every hand whole and suits as they are, so the row's own hand names its seat.
    config = SearchConfig(determinizations=3, simulations=3)
    result = search(r, ScriptedEvaluator(value=value), config, seed=0)
    assert np.all(result.q[result.visits > 0] == np.float32(0.25))


# --- what search need not ask --------------------------------------------------------------------------------------------------


def test_search_forced_root_asks_nothing() -> None:
    r = round_of("SA HK | SK HA | CA CK", "H", 2, "1 0 2 | SA")
    assert r.legal_actions() == [11]
    recorder = RecordingEvaluator(HashEvaluator())
    result = search(r, recorder, SearchConfig(), seed=0)
    assert recorder.rows == 0 and result.evaluations == 0
    assert result.policy[11] == 1 and result.policy.sum() == 1


def test_search_everything_forced_after_the_root_asks_for_the_root_alone() -> None:
    r = round_of("SA | HK | CA | DA", None, 3, "0 1 1")
    recorder = RecordingEvaluator(HashEvaluator())
    result = search(r, recorder, SearchConfig(determinizations=5, simulations=40), seed=0)
    assert recorder.rows == 1 and result.evaluations == 1
    assert result.visits.sum() == 200


def test_search_rows_with_a_mask_have_two_legal_actions_or_more() -> None:
    """A position with one legal action is walked through; a row for its value alone carries an empty mask."""
    recorder = RecordingEvaluator(HashEvaluator())
    for truth in undecided_positions(41, 40):
        search(as_round(truth), recorder, SearchConfig(determinizations=2, simulations=20), seed=0)
    counts = np.concatenate([masks.sum(axis=1) for _, masks, _, _ in recorder.batches])
    assert 1 not in counts
    assert (counts == 0).any() and (counts > 1).any()


def test_search_rows_of_one_decision_are_counted_and_rarely_repeat() -> None:
    """Two ways to one row are rare: tricks that change places, hands that differ by names of suits."""
    distinct = asked = 0
    for truth in undecided_positions(42, 60):
        recorder = RecordingEvaluator(HashEvaluator())
        config = SearchConfig(determinizations=3, simulations=30, leaves_in_flight=4)
        result = search(as_round(truth), recorder, config, seed=0)
        assert recorder.rows == result.evaluations
        distinct += len(set(recorder.seen()))
        asked += recorder.rows
    assert distinct >= 0.98 * asked


def test_search_root_is_asked_once_and_before_anything_below_it() -> None:
    for truth in undecided_positions(43, 30):
        r = as_round(truth)
        recorder = RecordingEvaluator(HashEvaluator())
        search(r, recorder, SearchConfig(determinizations=4, simulations=20, leaves_in_flight=8), seed=0)
        root = (r.features().tobytes(), r.mask().tobytes())
        assert len(recorder.batches[0][0]) == 1 and recorder.seen()[0] == root
        assert recorder.seen().count(root) == 1


def test_search_worlds_of_a_decision_go_together() -> None:
    """Steps follow the simulations of one world, whatever the number of worlds; each step asks for all of them."""
    truth = random_position(random.Random(9), 4, 8, 0)
    steps, rows = {}, {}
    for num_worlds in (1, 16):
        recorder = RecordingEvaluator(HashEvaluator())
        search(as_round(truth), recorder, SearchConfig(determinizations=num_worlds, simulations=40), seed=0)
        steps[num_worlds], rows[num_worlds] = len(recorder.batches), recorder.rows
    assert steps[16] < 2.5 * steps[1]
    assert rows[16] > 3 * rows[1]


def test_search_zero_simulations_is_the_evaluators_policy_mapped_back() -> None:
    for truth in undecided_positions(44, 60):
        r = as_round(truth)
        recorder = RecordingEvaluator(HashEvaluator())
        result = search(r, recorder, SearchConfig(simulations=0), seed=0)
        assert recorder.rows == result.evaluations == 1 and result.simulations == 0 and not result.visits.any()
        _, _, policies, values = recorder.batches[0]
        expected = np.zeros(52, np.float32)
        for a in truth.legal():
            expected[a] = policies[0][r.action_to_canonical(a)]
        assert np.allclose(result.policy, expected, atol=1e-6)
        assert result.value == pytest.approx(float(values[0, 0]), abs=1e-6)


# --- noise, targets, roots ----------------------------------------------------------------------------------------------------


def test_search_noise_changes_the_visits_with_the_seed_and_only_where_it_is_asked_for() -> None:
    truth = random_position(random.Random(12), 4, 8, 0)
    r = as_round(truth)
    config = SearchConfig(determinizations=1, simulations=60, known_hands=True)
    quiet = {search(r, UniformEvaluator(0.5), config, seed=s).visits.tobytes() for s in range(10)}
    noisy = {
        search(
            r, UniformEvaluator(0.5), dataclasses.replace(config, noise_fraction=0.5, noise_alpha=0.3), seed=s
        ).visits.tobytes()
        for s in range(10)
    }
    assert len(quiet) == 1 and len(noisy) == 10


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_search_noise_where_all_values_are_equal_leaves_the_target_as_it_is_without(alpha: float) -> None:
    r = as_round(random_position(random.Random(12), 4, 8, 0))
    weights = np.arange(1.0, 53.0)
    evaluator = ScriptedEvaluator(lambda state, mask: weights, lambda state: 0.5)
    config = SearchConfig(determinizations=2, simulations=60)
    loud = dataclasses.replace(config, noise_fraction=0.4, noise_alpha=alpha)
    clean = search(r, evaluator, config)
    assert np.allclose(clean.policy, clean.visits / clean.visits.sum())
    for seed in range(20):
        noisy = search(r, evaluator, loud, seed=seed)
        assert (noisy.visits != clean.visits).any()
        assert np.array_equal(noisy.policy, clean.policy)


def test_search_noise_moves_a_target_of_visits_less_than_the_visits() -> None:
    """What noise finds out may stay; where it led may not, whatever the values are."""
    config = SearchConfig(determinizations=3, simulations=30)
    loud = dataclasses.replace(config, noise_fraction=0.4, noise_alpha=0.3)
    moved = kept = 0.0
    for index, truth in enumerate(undecided_positions(52, 60)):
        r = as_round(truth)
        clean, noisy = (search(r, HashEvaluator(), one, seed=index) for one in (config, loud))
        moved += np.abs(noisy.visits / noisy.visits.sum() - clean.policy).sum()
        kept += np.abs(noisy.policy - clean.policy).sum()
    assert moved > 5 and kept < 0.6 * moved, f"{moved:.2f} by visits, {kept:.2f} in the target"


def test_search_visits_of_halving_under_noise_are_no_target() -> None:
    with pytest.raises(
        ConfigError, match="target is 'visits' with root 'halving' and noise; allowed: target 'improved'"
    ):
        SearchConfig(root="halving", noise_fraction=0.25)


def test_search_equal_values_visits_follow_the_prior() -> None:
    truth = random_position(random.Random(14), 4, 8, 0)
    r = as_round(truth)
    weights = np.where(np.arange(52) == 3, 20.0, np.where(np.arange(52) == 6, 5.0, 1.0))
    result = search(
        r, ScriptedEvaluator(lambda state, mask: weights), SearchConfig(determinizations=2, simulations=64), seed=0
    )
    assert result.prior[3] == pytest.approx(20 / 32, abs=1e-5)
    assert result.visits[3] > 2 * result.visits[6] > 4 * result.visits[0] > 0


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_search_improved_target_is_prior_times_exp_of_beta_q_without_the_noise(noise: float) -> None:
    beta = 8.0
    for index, truth in enumerate(undecided_positions(51, 25)):
        r = as_round(truth)
        config = SearchConfig(
            determinizations=2, simulations=60, target="improved", improved_beta=beta, noise_fraction=noise
        )
        result = search(r, HashEvaluator(), config, seed=index)
        prior = search(r, HashEvaluator(), SearchConfig(simulations=0), seed=index).policy
        visited = np.flatnonzero(result.visits)
        constant = np.log(result.policy[visited]) - np.log(prior[visited]) - beta * result.q[visited]
        assert np.ptp(constant) < 1e-3
        assert all(result.policy[a] > 0 for a in truth.legal()), "actions never tried keep their share"


def test_search_visit_target_is_the_visit_shares() -> None:
    for index, truth in enumerate(undecided_positions(52, 20)):
        result = search(as_round(truth), HashEvaluator(), CONFIGS["plain"], seed=index)
        assert np.allclose(result.policy, result.visits / result.visits.sum(), atol=1e-6)


def test_search_halving_spends_its_visits_on_ever_fewer_actions() -> None:
    truth = random_position(random.Random(13), 4, 10, 0)
    r = as_round(truth)
    assert len(truth.legal()) == 11
    config = SearchConfig(determinizations=2, simulations=64, root="halving", considered=8)
    result = search(r, HashEvaluator(), config, seed=0)
    visits = sorted(result.visits[truth.legal()], reverse=True)
    assert sum(v > 0 for v in visits) == 8, "so many as are considered, no more"
    assert visits[0] >= 2 * visits[4] and visits[0] == visits[1]
    assert result.visits.sum() == result.simulations == 128


def test_search_finished_round_raises() -> None:
    r = round_of("SA | S2 | S3", None, 2, "1 0 1 | SA S2 S3")
    with pytest.raises(ValueError, match="over"):
        search(r, HashEvaluator(), SearchConfig(), seed=0)


def test_search_evaluator_that_raises_is_heard() -> None:
    class Broken:
        def evaluate_many(self, states: np.ndarray, masks: np.ndarray) -> None:
            raise LookupError("no answer")

    with pytest.raises(LookupError, match="no answer"):
        search(round_of("SA SK | HA HK | CA CK", "S", 2), Broken(), SearchConfig(), seed=0)


@pytest.mark.parametrize(
    "answer",
    [
        lambda b: (np.zeros((b, 51), np.float32), np.zeros((b, 1), np.float32)),
        lambda b: (np.zeros((b + 1, 52), np.float32), np.zeros((b, 1), np.float32)),
        lambda b: (np.full((b, 52), np.nan, np.float32), np.zeros((b, 1), np.float32)),
        lambda b: (np.full((b, 52), 1 / 52, np.float32), np.full((b, 1), np.inf, np.float32)),
    ],
    ids=["too narrow", "too many rows", "NaN policy", "infinite value"],
)
def test_search_evaluator_with_a_wrong_answer_raises(answer) -> None:  # type: ignore[no-untyped-def]
    class Wrong:
        def evaluate_many(self, states: np.ndarray, masks: np.ndarray):  # type: ignore[no-untyped-def]
            return answer(len(states))

    with pytest.raises((ValueError, RuntimeError), match="shape|finite"):
        search(round_of("SA SK | HA HK | CA CK", "S", 2), Wrong(), SearchConfig(), seed=0)


# --- against a network ----------------------------------------------------------------------------------------------------------


def decision(r: shmzero.Round, config: SearchConfig, seed: int) -> Generator[Any, Any, dict[str, Any]]:
    """A search that yields the rows it asks for, is sent their answers, and returns its result."""
    run = _core.SearchRun(r, config.to_core(), seed)
    while (rows := run.step()) is not None:
        run.answer(*(yield rows))
    return run.result()


def duplicate_round(deal: tuple[Any, ...], config: SearchConfig, key: str) -> Generator[Any, Any, int]:
    """Points of `ego` who searches by `config`, the others playing the network's policy with the same luck each time."""
    hands, trump, dealer, ego = deal
    r = shmzero.Round.from_hands(hands, trump=trump, dealer=dealer)
    ply = 0
    while r.phase != "done":
        if r.seat == ego and config.simulations:
            r.apply((yield from decision(r, config, ply))["action"])
        else:
            policy = (yield from decision(r, SearchConfig(simulations=0), ply))["policy"]
            r.apply(random.Random(f"{key} {ply}").choices(range(52), policy.tolist())[0])
        ply += 1
    return r.scores()[ego]


def in_step(evaluator: Any, games: list[Generator[Any, Any, int]]) -> list[int]:
    """Runs all of them together, one batch a step, and returns what each returned."""
    results = [0] * len(games)
    answers: dict[int, Any] = dict.fromkeys(range(len(games)))
    while answers:
        asked = {}
        for index, answer in answers.items():
            try:
                asked[index] = games[index].send(answer)
            except StopIteration as end:
                results[index] = end.value
        answers = {}
        if asked:
            policies, values = evaluator.evaluate_many(
                *(np.concatenate(part) for part in zip(*asked.values(), strict=True))
            )
            at = 0
            for index, (states, _) in asked.items():
                answers[index] = policies[at : at + len(states)], values[at : at + len(states)]
                at += len(states)
    return results


@pytest.fixture(scope="module")
def fitted() -> Any:
    """A small network after some ten seconds on searched rounds."""
    import torch

    from shmzero.nets.evaluator import NetEvaluator
    from tools.benchmarks.fitted_net import fitted_net

    torch.set_num_threads(1)
    return NetEvaluator(fitted_net(shmzero.NetConfig(width=64, hidden=128, blocks=2), 300))


@pytest.mark.slow
@pytest.mark.parametrize("cards", [3, 5])
def test_search_beats_the_policy_of_its_own_barely_trained_network_in_duplicate_deals(fitted: Any, cards: int) -> None:
    """Preset medium. One seat searches, the others play the policy; then the same deal with that seat on its policy too."""
    rng = random.Random("duplicate")
    deals = [
        (oracle.random_deal(rng, 4, cards), rng.choice([0, 1, 2, 3, None]), rng.randrange(4), rng.randrange(4))
        for _ in range(400)
    ]
    scores = [
        in_step(fitted, [duplicate_round(deal, config, str(index)) for index, deal in enumerate(deals)])
        for config in (SearchConfig(determinizations=3, simulations=30), SearchConfig(simulations=0))
    ]
    differences = np.subtract(scores[0], scores[1])
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(len(differences))
    assert mean - 1.96 * error > 0, f"{mean:.2f} +- {1.96 * error:.2f} points a round"


def test_fitted_network_values_two_root_hands_of_one_public_position_differently(fitted: Any) -> None:
    """Leaves take their value from the root seat's row: it must tell a hand that meets its bid from one that does not."""
    strong, weak = "SA SK SQ SJ ST", "S2 H2 C2 D2 S3"
    rest = "H3 H4 H5 H6 H7 | C3 C4 C5 C6 C7 | D3 D4 D5 D6 D7"
    values = {}
    for hand in (strong, weak):
        for bid in (0, 5):
            r = round_of(f"{rest} | {hand}", "S", 2, f"{bid} 1 1")
            _, answer = fitted.evaluate_many(r.features(3)[None], r.mask()[None])
            values[hand, bid] = float(answer[0, 0])
    assert values[strong, 5] > values[weak, 5] + 0.1
    assert values[weak, 0] > values[strong, 0] + 0.1


def test_search_solved_leaves_have_the_exact_solvers_values() -> None:
    """With the hands known and every leaf solved, one look at each action is all there is to know."""
    found = 0
    for seed in range(40):
        position = as_round(random_position(random.Random(seed), 3, 4, num_actions=4))
        if len(position.legal_actions()) == 1:
            continue
        config = SearchConfig(
            known_hands=True, simulations=40, opponents="maximise", solved_cards=12, leaves_in_flight=1
        )
        result = shmzero.search(position, HashEvaluator(), config)
        for action in position.legal_actions():
            after = position.copy()
            after.apply(action)
            scores = _core.solve(after)[1]
            assert result.q[action] == pytest.approx(scores[position.seat] / (10 + position.cards), abs=1e-6)
            found += 1
    assert found > 50
    with pytest.raises(shmzero.ConfigError, match="solved_cards is 21"):
        SearchConfig(solved_cards=21)
