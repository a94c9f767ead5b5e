"""Matches by duplicate deals, their figures, ratings, the command.

Figures are computed once more from the rounds in plain Python; strength is compared on fixed deals.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmzero import ConfigError, SearchConfig, _core, play_rounds
from shmzero.arena import main
from shmzero.matches.agents import make_agent
from shmzero.matches.duplicate import MatchResult, match_plan, play_match, play_tables
from shmzero.matches.pool import rate
from shmzero.matches.rating import draw_tables, fit, ratings, risk_sets
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from tests.support.fakes import HashEvaluator, RecordingEvaluator, UniformEvaluator, over_legal

POLICY = SearchConfig(simulations=0)


def figures(result: MatchResult) -> dict[str, Any]:
    """All but the time it took."""
    return {name: value for name, value in result.as_dict().items() if name != "seconds"}


def rounds_of(names: list[str], table: list[int], deals: int, **what: Any) -> dict[str, np.ndarray]:
    plan = match_plan(
        what.get("players", 4), what.get("cards", 5), "random", what.get("games", False), what.get("seed", 0)
    )
    tables = np.zeros((deals, 8), np.uint8)
    tables[:, : len(table)] = table
    return play_tables([make_agent(name) for name in names], tables, plan)


class Boldest:
    """Bids and plays the highest action."""

    def evaluate_many(self, states: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return over_legal(100.0 ** (np.arange(52.0) / 4), masks), np.zeros((len(states), 1), np.float32)


# --- duplicate deals ----------------------------------------------------------------------------------------------------------


def test_rotations_play_the_same_deal_of_every_settings() -> None:
    rounds = rounds_of(["threshold"], [0], 40, players="3-6", cards="1-8")
    by_deal = defaultdict(list)
    for i, deal in enumerate(rounds["deal"]):
        by_deal[deal].append(
            [rounds[name][i].tolist() for name in ("players", "cards", "dealer", "scores", "bids", "tricks")]
        )
    assert len(by_deal) == 40
    for played in by_deal.values():
        assert len(played) == played[0][0]
        assert all(one == played[0] for one in played)
    assert {played[0][0] for played in by_deal.values()} == {3, 4, 5, 6}
    assert len({played[0][1] for played in by_deal.values()}) == 8


@pytest.mark.parametrize("mode", ["one", "rest"])
@pytest.mark.parametrize("games", [False, True])
def test_match_of_an_agent_that_does_not_draw_with_itself_cancels_exactly(mode: Any, games: bool) -> None:
    result = play_match("threshold", "threshold", deals=10, mode=mode, players="3-5", cards="4", games=games)
    assert abs(result.mean) < 1e-12 and result.high - result.low < 1e-12
    assert result.win_share == pytest.approx(result.fair_share)


@pytest.mark.slow
def test_match_of_an_agent_that_draws_with_itself_is_noise_of_the_stated_size() -> None:
    """95 % of the intervals hold the truth, 0."""
    results = [play_match("mc8", "mc8", deals=40, seed=seed) for seed in range(300)]
    held = sum(result.low < 0 < result.high for result in results)
    assert 275 <= held <= 295


def test_both_modes_of_a_pair_mirror_each_other() -> None:
    one = play_match("random", "threshold", deals=50, mode="one")
    rest = play_match("threshold", "random", deals=50, mode="rest")
    assert one.mean == pytest.approx(-rest.mean)
    assert one.exact_bid == rest.villain_exact_bid and one.villain_exact_bid == rest.exact_bid
    assert one.win_share + 3 * rest.win_share == pytest.approx(1)


def test_match_is_a_function_of_its_arguments_whatever_the_threads() -> None:
    def played(seed: int, threads: int) -> dict[str, Any]:
        return figures(play_match("mc20", "uct2x10", deals=20, seed=seed, threads=threads))

    assert played(1, 1) == played(1, 4) != played(2, 4)


@pytest.mark.parametrize("search", [POLICY, SearchConfig(determinizations=2, simulations=8)])
def test_match_of_a_network_is_a_function_of_its_arguments(search: SearchConfig) -> None:
    def played(deals: int, threads: int) -> list[Any]:
        agents = [make_agent((HashEvaluator(), search)), make_agent("mc8")]
        tables = np.array([[0, 1, 1, 1, 0, 0, 0, 0]] * deals, np.uint8)
        rounds = play_tables(agents, tables, match_plan(4, 5, "random", False, 1), threads)
        return [column[: 4 * 12].tolist() for column in rounds.values()]

    # Other deals in the same batches change nothing.
    assert played(12, 1) == played(12, 2) == played(30, 2)


# --- figures ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["one", "rest"])
@pytest.mark.parametrize("games", [False, True])
def test_figures_equal_plain_python(mode: Any, games: bool) -> None:
    deals = 15
    what = {"players": "3-4", "cards": "2-3", "games": games, "seed": 5}
    result = play_match("mc8", "threshold", deals=deals, mode=mode, **what)
    rounds = rounds_of(["mc8", "threshold"], [0] + [1] * 7 if mode == "one" else [1] + [0] * 7, deals, **what)
    units: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in range(len(rounds["deal"])):
        units[int(rounds["deal"][i]), int(rounds["rotation"][i])].append(i)
    leads: dict[Any, list[Any]] = defaultdict(list)
    exact: dict[Any, list[Any]] = defaultdict(list)
    shares: list[Any] = []
    for (deal, rotation), indices in units.items():
        n = int(rounds["players"][indices[0]])
        totals = [int(sum(rounds["scores"][i][s] for i in indices)) for s in range(n)]
        heroes = [s for s in range(n) if (s == rotation) == (mode == "one")]
        villains = [s for s in range(n) if s not in heroes]
        lead = np.mean([totals[s] for s in heroes]) - np.mean([totals[s] for s in villains])
        leads[deal].append(lead / len(indices))
        shares += [np.mean([(totals[s] == max(totals)) / totals.count(max(totals)) for s in heroes])]
        for i in indices:
            exact[int(rounds["cards"][i])] += [rounds["bids"][i][s] == rounds["tricks"][i][s] for s in heroes]
    by_deal = [np.mean(lead) for lead in leads.values()]
    assert result.mean == pytest.approx(np.mean(by_deal))
    assert result.high - result.mean == pytest.approx(1.96 * np.std(by_deal, ddof=1) / math.sqrt(deals))
    assert result.win_share == pytest.approx(np.mean(shares))
    assert result.exact_bid == pytest.approx({size: np.mean(hits) for size, hits in exact.items()})
    assert result.rounds == len(rounds["deal"])
    assert (len(units) < len(rounds["deal"])) == games


def test_games_have_all_their_rounds_and_a_new_dealer_each() -> None:
    rounds = rounds_of(["threshold"], [0], 2, cards=3, games=True)
    first = rounds["round_of_game"] == 0
    assert first.sum() == 8
    game = np.flatnonzero(first)[0]
    length = len(_core.Rules().hand_sizes(4, 3))
    assert rounds["cards"][game : game + length].tolist() == _core.Rules().hand_sizes(4, 3)
    dealers = rounds["dealer"][game : game + length]
    assert np.array_equal((dealers - dealers[0]) % 4, np.arange(length) % 4)


@pytest.mark.parametrize("mode", ["one", "rest"])
def test_ceiling_holds_for_every_hand_size_of_the_tables_played(mode: Any) -> None:
    """Of a match with itself the hero's rate is that of whole tables; large hands have small tables alone."""
    result = play_match("threshold", "threshold", deals=100, players="3,8", cards="1,10", mode=mode)
    rounds = rounds_of(["threshold"], [0], 100, players="3,8", cards="1,10")
    for size in result.exact_bid:
        players = rounds["players"][rounds["cards"] == size].astype(float)
        per_round = players - 1 if mode == "rest" else np.ones_like(players)
        assert result.ceiling[size] == pytest.approx(np.average(1 - 1 / players, weights=per_round))
        assert 0 < result.exact_bid[size] < result.ceiling[size]
    assert len(set(result.ceiling.values())) > 1


# --- strength -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weak", "strong", "deals"), [("random", "threshold", 100), ("threshold", "mc90", 500), ("mc90", "mc900", 800)]
)
def test_stronger_bots_win_both_ways(weak: str, strong: str, deals: int) -> None:
    for mode in ("one", "rest"):
        assert play_match(strong, weak, deals=deals, mode=mode, seed=9).low > 0, mode


def test_uct_beats_the_threshold_bot_with_and_without_the_solver() -> None:
    assert play_match("uct5x60", "threshold", deals=300).low > 0
    assert play_match("uct5x60+solver", "threshold", deals=300).low > 0


# --- networks -----------------------------------------------------------------------------------------------------------------


def test_evaluator_plays_its_policy_in_the_seat_it_has() -> None:
    result = play_match((Boldest(), POLICY), "threshold", deals=30)
    assert result.hero == "Boldest"
    agents = [make_agent((Boldest(), POLICY)), make_agent("threshold")]
    rounds = play_tables(
        agents, np.array([[0, 1, 1, 1, 1, 1, 1, 1]] * 30, np.uint8), match_plan(4, 5, "random", False, 0)
    )
    seats = rounds["rotation"]
    bids = rounds["bids"][np.arange(len(seats)), seats]
    last = rounds["dealer"] == seats
    assert (bids[~last] == 5).all() and np.isin(bids[last], (4, 5)).all()


def test_checkpoint_plays_with_and_without_search(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=1), path)
    search = make_agent(f"{path}:2x8+halving+maximise+solver8").config
    assert isinstance(search, SearchConfig)
    assert (search.root, search.opponents, search.solved_cards) == ("halving", "maximise", 8)
    with pytest.raises(ConfigError, match="in this order"):
        make_agent(f"{path}:2x8+solver8+halving")
    for suffix, simulations in ((":policy", 0), (":2x8", 8), (":2x8+halving", 8), ("", 30)):
        agent = make_agent(f"{path}{suffix}")
        assert isinstance(agent.config, SearchConfig) and agent.config.simulations == simulations
        assert play_match(agent, "random", deals=4, mode="rest").rounds == 16


def test_checkpoint_plays_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1), seed=1), path)
    results = [play_match(make_agent(f"{path}:4x12", threads=t), "mc8", deals=60) for t in (1, 3)]
    assert figures(results[0]) == figures(results[1])


@pytest.mark.parametrize(
    ("policies", "values", "error", "message"),
    [
        (np.ones((1, 52)), np.ones((1, 1)), ValueError, "another shape"),
        (None, np.full(1, np.nan), RuntimeError, "finite"),
        (None, np.zeros((1, 2)), ValueError, "another shape"),
    ],
)
def test_broken_evaluator_raises(policies: Any, values: np.ndarray, error: type[Exception], message: str) -> None:
    class Broken:
        def evaluate_many(self, states: np.ndarray, masks: np.ndarray) -> tuple[Any, Any]:
            given = over_legal(np.ones(masks.shape), masks) if policies is None else policies
            return given, np.repeat(values.reshape(1, -1), len(states), axis=0)

    with pytest.raises(error, match=message):
        play_match((Broken(), POLICY), "random", deals=2)


# --- ratings ------------------------------------------------------------------------------------------------------------------


def test_fit_recovers_strengths_of_drawn_rankings() -> None:
    truth = np.array([0.0, 0.5, -1.0, 1.5])
    rng = np.random.default_rng(4)
    agents = np.array([rng.permutation(4) for _ in range(6000)])
    points = truth[agents] + rng.gumbel(size=agents.shape)  # ranks of Gumbel variables are Plackett-Luce
    table = ratings("abcd", agents, points, np.arange(6000) // 4, settings={}, resamples=50)
    assert list(table.agents) == ["d", "b", "a", "c"] and table.deals == 1500
    for name, strength in zip("abcd", truth, strict=True):
        wanted = (strength - truth.mean()) * 400 / math.log(10)
        one = table.agents[name]
        assert one.low - 5 < wanted < one.high + 5
        assert 4 < one.high - one.low < 20


def test_fit_of_ties_maximises_the_average_likelihood_of_their_orders() -> None:
    """Three agents, one of them tied with another for the last place: against a scan of Efron's likelihood."""
    agents = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    points = np.array([[10.0, 0, 0], [12, 11, 0], [11, 11, 0]])
    sets = risk_sets(agents, points, 3)
    assert sets[0, 0].tolist() == [1, 1, 1] and sorted(sets[0, 1:].sum(1).tolist()) == [1, 2]
    assert sets[2, 0].tolist() == [1, 1, 1] and sets[2, 1].tolist() == [0.5, 1, 0.5]

    def likelihood(s: np.ndarray) -> float:
        e = np.exp(s)
        first = e[0] / e.sum() * e[1] / (e[1] + e[2]) * e[2] / ((e[1] + e[2]) / 2)
        second = e[1] / e.sum() * e[0] / (e[0] + e[2])
        third = e[2] / e.sum() * e[0] / (e[1] + (e[0] + e[2]) / 2)
        return float(np.log(first * second * third) - s @ s / 200)

    won = np.array([[1.0, 1, 1]] * 3)
    best = fit(won, sets, np.ones(3), np.zeros(3))
    for step in itertools.product((-0.02, 0, 0.02), repeat=3):
        assert likelihood(best + np.array(step)) <= likelihood(best) + 1e-9


def test_draw_tables_seats_everybody_about_equally_often() -> None:
    tables = draw_tables(5, 100, 4, seed=1)
    assert tables.shape == (100, 4)
    assert np.bincount(tables.ravel()).tolist() == [80] * 5
    assert all(len(set(row)) > 1 for row in draw_tables(2, 200, 3, seed=2).tolist())


def test_rate_orders_bots_and_anchors_the_threshold_bot() -> None:
    table = rate(["random", "mc200", "threshold"], deals=150, players="3-5", seed=2)
    assert list(table.agents) == ["mc200", "threshold", "random"]
    assert table.agents["threshold"].rating == table.agents["threshold"].low == 0
    assert table.agents["mc200"].low > 0 > table.agents["random"].high
    assert table.anchor == "threshold"


# --- the command --------------------------------------------------------------------------------------------------------------


def test_command_prints_a_table_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["threshold", "random", "mc8", "--deals", "5", "--cards", "1-2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["against", "mode", "points", "low", "high", "win", "equal", "deals", "rounds", "s"]
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["random", "one"],
        ["random", "rest"],
        ["mc8", "one"],
        ["mc8", "rest"],
    ]
    assert main(["threshold", "random", "--deals", "5", "--mode", "one", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    expected = figures(play_match("threshold", "random", deals=5))
    got = {name: value for name, value in summary["matches"][0].items() if name != "seconds"}
    assert got == json.loads(json.dumps(expected))


def test_command_rating_keeps_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["--rating", "random", "threshold", "--deals", "10", "--out", str(folder), "--json"]) == 0
    kept = json.loads((folder / "ratings.json").read_text())
    assert kept == json.loads(capsys.readouterr().out)
    assert list(kept["agents"]) == ["threshold", "random"] and kept["deals"] == 10
    assert [path.name for path in folder.iterdir()] == ["ratings.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("random", "one agent, random, has nobody to play"),
        ("foo random", "agent 'foo' is not built in"),
        ("nowhere.safetensors:policy random", "no checkpoint file 'nowhere.safetensors'"),
        (f"{__file__}:2x8 random", "cannot be read"),
        ("mc0 random", "playouts of mc0 is 0"),
        ("uct10x0 random", "simulations of uct10x0 is 0"),
        ("random threshold --deals 1", "deals is 1"),
        ("random threshold --deals x", "--deals: 'x' is no whole number"),
        ("random threshold --players 9", "players is '9'"),
        ("random threshold --players 8 --cards 7", "allows at most 6 cards"),
        ("random threshold --trump x", "trump is 'x'"),
        ("random threshold --seed -1", "seed is -1"),
        ("random threshold --threads 0", "threads is 0"),
        ("random threshold --device tpu", "device is 'tpu'"),
        ("random threshold --mode none", "mode is 'none'; allowed: one, rest, both"),
        ("random threshold --out x", "--out is set without --rating"),
        ("--rating random threshold --mode one", "--mode is set with --rating"),
        ("random threshold --deals-from mine", "invalid choice: 'mine'"),
        ("--rating random random", "agent random is in the pool twice"),
        ("--rating random threshold mc1 mc2 mc3 mc4 mc5 --players 3 --deals 2", "deals is 2, and "),
    ],
)
def test_command_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err


def test_known_hands_is_refused() -> None:
    with pytest.raises(ConfigError, match="never looks at hidden hands"):
        make_agent((HashEvaluator(), SearchConfig(known_hands=True)))


@pytest.mark.parametrize("games", [False, True])
def test_match_deals_nothing_that_self_play_with_its_seed_has_dealt(games: bool) -> None:
    """Nor what a game begins with: of hands of ten cards no two are the same by chance."""
    dealt = []
    for play in (
        lambda seen: play_rounds(seen, 30, POLICY, seed=3, cards="10", games=games),
        lambda seen: play_match((seen, POLICY), "threshold", deals=30, seed=3, cards="10", games=games, mode="rest"),
    ):
        seen = RecordingEvaluator(UniformEvaluator())
        play(seen)
        hands = np.concatenate([states[:, :52] for states, *_ in seen.batches])
        dealt.append({hand.tobytes() for hand in hands[hands.sum(axis=1) == 10]})
    assert len(dealt[0]) > 100 and len(dealt[1]) > 100 and not dealt[0] & dealt[1]


def test_match_of_another_seed_has_other_deals_and_of_the_same_the_same() -> None:
    plan = [match_plan(4, "5", "random", False, seed) for seed in (1, 1, 2)]
    agents, table = [make_agent("threshold")], np.zeros((20, _core.MAX_PLAYERS), np.uint8)
    one, same, other = (
        [play_tables(agents, table, settings)[name].tolist() for name in ("scores", "bids")] for settings in plan
    )
    assert one == same != other
