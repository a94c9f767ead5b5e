"""The learner: full-deal rows, its arithmetic, its state."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from shmzero import SearchConfig, _core, play_rounds
from shmzero.errors import ConfigError, ModelFailed
from shmzero.game.deals import DEALS
from shmzero.learner.algorithm import METRICS, Learner
from shmzero.learner.buffer import ReplayBuffer
from shmzero.learner.config import LearnerConfig
from shmzero.learner.losses import action_weights, policy_gradient
from shmzero.learner.optimiser import MOST_SKIPPED
from shmzero.learner.schedule import Schedule
from shmzero.learner.state import load_state, save_state
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.config import NetConfig
from shmzero.nets.masks import masked_softmax, unpack_masks
from shmzero.training.presets import TRAIN_PRESETS
from tests.support import oracle
from tests.support.cases import as_round
from tests.support.fakes import HashEvaluator

POLICY_ALONE = SearchConfig(simulations=0, noise_fraction=0.1)


def buffer_of(records: list[bytes], capacity: int = 20_000) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity)
    buffer.add(records)
    return buffer


# --- rows ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [POLICY_ALONE, SearchConfig(determinizations=2, simulations=8)])
def test_full_deal_rows_decode_to_the_true_hands(search: SearchConfig) -> None:
    records = play_rounds(HashEvaluator(), 40, search, seed=5, players="3-6", cards="1-6")
    rows = {name: t.numpy() for name, t in buffer_of(records).tensors.items()}
    known = _core.replay(records)
    at = 0
    for data in records:
        record = _core.decode_record(data)
        truth = oracle.Position([list(hand) for hand in record["hands"]], record["trump"], record["dealer"])
        dealt = {card for hand in record["hands"] for card in hand}
        end = truth.copy()
        for action in record["actions"]:
            end.apply(action)
        searched = {one["ply"] for one in record["searched"]}
        for ply, action in enumerate(record["actions"]):
            if ply in searched:
                r = as_round(truth)
                suits = r.suit_order()

                def real(hand: int, row: int = at, suits: list[int] = suits) -> set[int]:
                    cards = np.flatnonzero(rows["hands"][row, 52 * hand : 52 * (hand + 1)])
                    return {suits[card // 13] * 13 + card % 13 for card in cards.tolist()}

                assert real(0) == set(range(52)) - dealt
                for i in range(1, 8):
                    hand = truth.hands[(truth.seat + i) % truth.players] if i < truth.players else []
                    assert real(i) == set(hand)
                yet_to_bid = range(1, truth.players - ply) if ply < truth.players else ()
                assert rows["silent"][at] == sum(1 << i for i in yet_to_bid)
                assert r.action_from_canonical(int(rows["actions"][at])) == action
                assert np.array_equal(rows["features"][at].astype(np.float32), r.features())
                assert rows["utilities"][at] == pytest.approx(end.utilities()[truth.seat], abs=1e-6)
                assert rows["tricks"][at] == end.tricks_won[truth.seat]
                at += 1
            truth.apply(action)
    for name, other in (
        ("masks", "masks"),
        ("seat_features", "seat_features"),
        ("seat_utilities", "seat_values"),
        ("versions", "versions"),
    ):
        assert np.array_equal(rows[name][:at].astype(known[other].dtype), known[other]), name
    assert np.allclose(rows["policies"][:at].astype(np.float32), known["policies"], atol=1e-3)
    assert at == len(known["masks"]) > 300


def test_redeal_moves_the_cards_of_silent_seats_alone() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 60, POLICY_ALONE, seed=5, players="3-8", cards="1-6"))
    silent, hands = (buffer.tensors[name][: len(buffer)].numpy() for name in ("silent", "hands"))
    rows, dealt = _core.redeal(hands, silent, 3, seed=1)
    assert np.array_equal(rows, np.repeat(np.flatnonzero(silent), 3)) and len(set(silent.tolist())) > 5
    before, after = hands[rows].reshape(-1, 8, 52), dealt.reshape(-1, 8, 52)
    assert np.array_equal(before.sum(axis=2), after.sum(axis=2))  # everyone has as many cards
    assert np.array_equal(before.sum(axis=1), after.sum(axis=1))  # and the same cards are out
    spoke = (silent[rows, None] >> np.arange(8) & 1 == 0) & (np.arange(8) > 0)
    assert np.array_equal(before[spoke], after[spoke]) and spoke.any()
    assert np.array_equal(dealt, _core.redeal(hands, silent, 3, seed=1)[1])
    assert not np.array_equal(dealt, _core.redeal(hands, silent, 3, seed=2)[1])


@pytest.mark.slow
def test_redeal_is_uniform_over_all_deals() -> None:
    hands = np.zeros((1, 8, 52), np.uint8)
    hands[0, 0, [3, 17]] = hands[0, 1, [20, 51]] = hands[0, 2, 30] = hands[0, 3, 40] = 1
    _, dealt = _core.redeal(hands.reshape(1, -1), np.array([0b1010], np.uint8), 60_000, seed=3)
    found, counts = np.unique(dealt, axis=0, return_counts=True)
    assert len(found) == 5 * 4 * 3 // 2  # one card of five for seat 3, two of the others for seat 1
    assert ((counts - 2000) ** 2 / 2000).sum() < 58.3  # chi-square, 29 degrees of freedom: 1 in 1,000 is above


def test_redeal_wrong_arrays_are_refused() -> None:
    hands, silent = np.zeros((2, 416), np.uint8), np.full(2, 2, np.uint8)
    for bad in (
        (np.zeros((2, 415), np.uint8), silent, 1),
        (hands, silent[:1], 1),
        (hands, silent, -1),
        (hands + 1, silent, 1),
    ):
        with pytest.raises(ValueError, match="^redeal: "):
            _core.redeal(*bad)
    for converted in ((hands.astype(np.int64), silent), (hands, silent.astype(np.int64))):
        with pytest.raises(TypeError, match="redeal"):
            _core.redeal(*converted, times=1)


def test_replay_buffer_wraps_round_and_keeps_the_newest() -> None:
    records = play_rounds(HashEvaluator(), 60, POLICY_ALONE, seed=6)
    whole = buffer_of(records)
    small = ReplayBuffer(300)
    for record in records:
        small.add([record])
    assert small.added == whole.added > 600 and len(small) == 300
    newest = {t.tobytes() for t in whole.tensors["features"][whole.added - 300 : whole.added].numpy()}
    assert {t.tobytes() for t in small.tensors["features"].numpy()} == newest


def test_replay_full_deal_wrong_arrays_are_refused_by_name() -> None:
    records = play_rounds(HashEvaluator(), 2, POLICY_ALONE)
    arrays = dict(ReplayBuffer(100)._arrays)
    for name in arrays:
        with pytest.raises(ValueError, match=f"'{name}'"):
            _core.replay_full_deal(records, {key: a for key, a in arrays.items() if key != name})
    with pytest.raises(ValueError, match="'hands' has another dtype"):
        _core.replay_full_deal(records, arrays | {"hands": np.zeros((100, 416), np.float32)})
    with pytest.raises(ValueError, match="'hands' has another shape"):
        _core.replay_full_deal(records, arrays | {"hands": np.zeros((100, 415), np.uint8)})


def test_serving_network_refuses_full_deal_rows() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 4, POLICY_ALONE))
    rows = torch.cat([buffer.tensors["features"][:8].float(), buffer.tensors["hands"][:8].float()], dim=1)
    assert rows.shape == (8, 256 + 8 * 52)
    with pytest.raises(RuntimeError):
        BlobNet(NetConfig(width=16, hidden=16, blocks=1)).policy_value(rows, torch.ones(8, 52, dtype=torch.bool))


def test_random_moves_without_a_search_are_drawn_uniformly() -> None:
    """A policy that always passes the first legal action: every other action played is a random move."""

    class First:
        def evaluate_many(self, states: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            policies = np.zeros(masks.shape, np.float32)
            policies[np.arange(len(masks)), masks.argmax(axis=1)] = 1.0
            return policies, np.zeros((len(masks), 1), np.float32)

    def share(fraction: float) -> float:
        config = SearchConfig(simulations=0, noise_fraction=fraction)
        others, expected = 0, 0.0
        for data in play_rounds(First(), 200, config, seed=8):
            record = _core.decode_record(data)
            for one in record["searched"]:
                counts = one["counts"]
                others += counts[record["actions"][one["ply"]]] == 0
                expected += 1 - 1 / len(counts)
        return others / expected

    assert share(0.0) == 0.0
    assert share(0.2) == pytest.approx(0.2, abs=0.04)


# --- arithmetic --------------------------------------------------------------------------------------------------------------------

SMALL = LearnerConfig(net="quick", critic_net="quick", batch=256, autocast="off", most_players=4)


def learner(config: LearnerConfig = SMALL) -> Learner:
    torch.manual_seed(0)
    return Learner(config, "cpu")


def steps(one: Learner, buffer: ReplayBuffer, number: int, done: float = 0.1) -> list[list[float]]:
    if not one.scaled:
        one.measure_scale(buffer)
    schedule = Schedule.at(one.config, done)
    found = [one.step(one.draw(buffer), schedule) for _ in range(number)]
    return [metrics.tolist() for metrics in found if metrics is not None]


def test_sampled_redeals_are_of_the_rows_that_were_drawn() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 200, POLICY_ALONE, lanes=512))
    batch = buffer.sample(300, torch.Generator().manual_seed(1), "cpu", redeals=4)
    rows = batch["redealt_rows"]
    assert torch.equal(rows.unique(), batch["silent"].nonzero()[:, 0]) and 0 < len(rows) == 4 * len(rows.unique())
    before, after = (t.view(-1, 8, 52) for t in (batch["hands"][rows], batch["redealt_hands"]))
    assert torch.equal(before.sum(dim=2), after.sum(dim=2)) and torch.equal(before.sum(dim=1), after.sum(dim=1))
    spoke = (batch["silent"][rows, None] >> torch.arange(8) & 1 == 0) & (torch.arange(8) > 0)
    assert torch.equal(before[spoke], after[spoke]) and not torch.equal(before, after)


def test_critic_is_averaged_over_redeals_of_bids() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 200, POLICY_ALONE, lanes=512))
    one = learner(dataclasses.replace(SMALL, redeals=5))
    one.measure_scale(buffer)
    batch = one.draw(buffer)
    rows = batch["redealt_rows"]
    assert len(rows) == 5 * len(rows.unique()) > 0
    with torch.no_grad():
        true = one.critic_values(batch)
        more = [one.critic_values({"features": batch["features"][[row]], "hands": batch["redealt_hands"][[k]]})
                for k, row in enumerate(rows.tolist())]  # fmt: skip
    valued = one.critic_step(batch, Schedule.at(one.config, 0.1))
    assert valued.q is not None
    for row in range(len(true)):
        own = [more[k][0] for k in (rows == row).nonzero()[:, 0].tolist()]
        assert torch.allclose(valued.q[row], torch.stack([true[row], *own]).mean(dim=0), atol=1e-5)
    assert not torch.allclose(valued.q[rows[0]], true[rows[0]], atol=1e-4)
    plain = learner(dataclasses.replace(SMALL, redeals=0))
    assert "redealt_rows" not in plain.draw(buffer)


@pytest.mark.slow
def test_learner_critic_explains_outcomes_and_losses_stay_finite() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 1500, POLICY_ALONE, lanes=512), 30_000)
    one = learner()
    found = np.array(steps(one, buffer, 240))
    assert np.isfinite(found).all() and one.skipped == 0
    at = METRICS.index("critic_loss")
    variance = float(buffer.tensors["utilities"][: len(buffer)].var())
    assert found[-20:, at].mean() < 0.92 * variance, "better than the mean of all outcomes"


def test_learner_critic_counts_what_is_rarely_done_for_more() -> None:
    policies = torch.zeros(3, 52)
    policies[0, 4], policies[0, 5] = 0.99, 0.01
    policies[1] = policies[0]
    policies[2, 7] = 1.0
    words = [1 << 4 | 1 << 5, 1 << 4 | 1 << 5, 1 << 7]
    batch = {"policies": policies, "actions": torch.tensor([4, 5, 7]), "masks": torch.tensor(words)}
    chances = np.array([0.9 * 0.99 + 0.05, 0.9 * 0.01 + 0.05, 1.0])
    for cap, counts in ((100.0, 1 / chances), (3.0, np.minimum(1 / chances, 3.0)), (1.0, np.ones(3))):
        np.testing.assert_allclose(action_weights(batch, 0.1, cap).numpy(), counts / counts.mean(), rtol=1e-5)


def test_learner_critic_learns_most_from_what_is_rarely_done_where_that_counts_for_more() -> None:
    """One situation, in which a bid of 1 is made in one of forty decisions and comes to less."""
    buffer = buffer_of(play_rounds(HashEvaluator(), 50, POLICY_ALONE))
    rows = {name: t[:1].repeat_interleave(40, dim=0) for name, t in buffer.tensors.items()}
    rows["masks"][:], rows["policies"][:] = 0b11, 0.0
    rows["policies"][:, 0], rows["policies"][:, 1] = 0.975, 0.025
    rows["actions"][:], rows["utilities"][:] = 0, 0.5
    rows["actions"][0], rows["utilities"][0] = 1, -0.5

    def error(cap: float) -> float:
        one = learner(dataclasses.replace(SMALL, importance_cap=cap, random_moves=0.0))
        one.scaled = True
        for _ in range(25):
            one.critic_step(rows, Schedule.at(one.config, 0.1))
        return abs(float(one.critic_values(rows).detach()[0, 1]) + 0.5)

    assert error(40.0) < error(1.0) / 2
    assert "policies" in learner().columns
    assert "policies" not in learner(dataclasses.replace(SMALL, importance_cap=1.0)).columns
    assert "policies" not in learner(dataclasses.replace(SMALL, searches=True)).columns


def test_broad_deals_have_as_many_decisions_of_every_hand_size() -> None:
    parts = (part.split(":") for part in DEALS["broad"]["cards"].split(","))
    weights = {int(cards): int(weight) for cards, weight in parts}
    assert set(weights) == set(range(1, 9)) and {cards * weight for cards, weight in weights.items()} == {840}


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_learner_policy_of_a_preset_goes_on_seeing_the_position(preset: str) -> None:
    """At twice the rate what the blocks make of different positions is soon the same."""
    buffer = buffer_of(play_rounds(HashEvaluator(), 1000, POLICY_ALONE, lanes=512))
    one = learner(TRAIN_PRESETS[preset].but(batch=512).learner_config())
    steps(one, buffer, 60, done=0.03)
    with torch.no_grad():
        seen = one.net.stream(buffer.tensors["features"][:1000].float())
    assert float(seen.std(dim=0).mean()) > 0.1


def test_learner_policy_moves_towards_the_critics_better_actions() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 400, POLICY_ALONE, lanes=400))
    one = learner(dataclasses.replace(SMALL, entropy_first=0.0, entropy_last=0.0))
    steps(one, buffer, 60)
    rows = {name: t[:2000] for name, t in buffer.tensors.items()}
    masks = unpack_masks(rows["masks"])
    with torch.no_grad():
        q = one.critic_values(rows)
        policies, _ = one.net.policy_value(rows["features"].float(), masks)
        uniform = masks / masks.sum(1, keepdim=True)
        assert float((policies * q).sum(1).mean()) > float((uniform * q).sum(1).mean()) + 0.01


def test_push_by_probabilities_is_the_gradient_of_what_the_policy_comes_to() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 52, generator=generator).requires_grad_()
    masks = torch.rand(50, 52, generator=generator) < 0.2
    masks[:, 0] = True
    left = torch.rand(50, 52, generator=generator) * masks
    policies = masked_softmax(logits, masks)
    log_policies = torch.log(policies.clamp(min=1e-9))
    comes_to = -(policies * left).sum() - 0.05 * (policies * log_policies).sum()
    moved = (policy_gradient(policies, log_policies, left, masks, 0.05, 0.0) * log_policies).sum()
    wanted, found = (torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (comes_to, moved))
    assert torch.allclose(found, wanted, atol=1e-5) and wanted.abs().max() > 0.01


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_push_rests_at_the_softmax_and_leaves_a_wrong_certainty(share: float) -> None:
    """One situation of three actions, the best of which has next to no chance at first."""
    masks = torch.zeros(1, 52, dtype=torch.bool)
    masks[0, :3] = True
    q = torch.zeros(1, 52)
    q[0, :3] = torch.tensor([0.1, 0.0, -0.05])
    left = (0.1 - q) * masks

    def after(share: float, steps: int) -> torch.Tensor:
        logits = torch.zeros(1, 52)
        logits[0, 1] = 9.0
        logits.requires_grad_()
        for _ in range(steps):
            policies = masked_softmax(logits, masks)
            log_policies = torch.log(policies.clamp(min=1e-9))
            moved = (policy_gradient(policies, log_policies, left, masks, 0.05, share) * log_policies).sum()
            (gradient,) = torch.autograd.grad(moved, logits)
            logits = (logits + gradient).detach().requires_grad_()
        return masked_softmax(logits, masks).detach()[0, :3]

    assert after(0.0, 1000)[0] < 0.01, "the gradient alone stays"
    assert torch.allclose(after(share, 6000), torch.softmax(q[0, :3] / 0.05, dim=0), atol=1e-3)


def test_learner_tricks_head_learns_how_many_the_mover_will_win() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 600, POLICY_ALONE, lanes=600))
    one = learner(dataclasses.replace(SMALL, tricks_weight=1.0))
    assert one.tricks is not None and "tricks" in one.columns
    rows = {name: t[:2000] for name, t in buffer.tensors.items()}

    def loss() -> float:
        with torch.no_grad():
            said = one.tricks(one.net.stream(rows["features"].float()))
        return float(torch.nn.functional.cross_entropy(said, rows["tricks"].long()))

    before = loss()
    steps(one, buffer, 60)
    shares = torch.bincount(rows["tricks"].long()) / len(rows["tricks"])
    entropy = -float((shares * shares.clamp(min=1e-9).log()).sum())
    assert loss() < min(before, entropy), "better than how often each number comes"
    assert "tricks" not in learner().columns


def test_learner_visits_targets_approach_the_recorded_policy() -> None:
    records = play_rounds(HashEvaluator(), 150, SearchConfig(determinizations=2, simulations=8), lanes=150)
    one = learner(dataclasses.replace(SMALL, targets="visits", searches=True))
    assert one.critic is None
    found = np.array(steps(one, buffer_of(records), 150))
    at = METRICS.index("policy_loss")
    assert found[-20:, at].mean() < found[:20, at].mean() - 0.05


def test_learner_gradient_that_is_not_finite_changes_nothing_and_then_stops() -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 50, POLICY_ALONE))
    one = learner()
    steps(one, buffer, 2)
    before = {name: t.clone() for name, t in one.net.state_dict().items()}
    for name in ("utilities", "seat_utilities"):
        buffer.tensors[name].fill_(float("nan"))
    assert steps(one, buffer, MOST_SKIPPED - 1) == []
    assert one.skipped == 2 * (MOST_SKIPPED - 1), "steps of policy and critic"
    for name, t in one.net.state_dict().items():
        assert torch.equal(t, before[name]), name
    with pytest.raises(ModelFailed, match="learning_rate"):
        steps(one, buffer, 1)


@pytest.mark.parametrize("targets", ["critic", "visits"])
def test_learner_saved_and_loaded_goes_on_exactly(tmp_path: Path, targets: str) -> None:
    buffer = buffer_of(play_rounds(HashEvaluator(), 100, POLICY_ALONE))
    config = dataclasses.replace(SMALL, targets=targets, searches=targets == "visits")
    one = learner(config)
    steps(one, buffer, 5)
    save_state(one, tmp_path / "state.safetensors", {"rows": 7})
    expected = steps(one, buffer, 5)
    other = learner(config)
    assert load_state(other, tmp_path / "state.safetensors")["rows"] == 7
    assert steps(other, buffer, 5) == expected
    for name, t in other.ema.state_dict().items():
        assert torch.equal(t, one.ema.state_dict()[name]), name


def test_learner_state_of_other_networks_is_refused(tmp_path: Path) -> None:
    save_state(learner(), tmp_path / "state.safetensors", {})
    with pytest.raises(ConfigError, match="other networks"):
        load_state(learner(dataclasses.replace(SMALL, net="small")), tmp_path / "state.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(learner(), tmp_path / "text.safetensors")


def test_schedule_falls_to_a_hundredth_and_the_entropy_weight_linearly() -> None:
    config = LearnerConfig()
    rates = [Schedule.at(config, done).learning_rate for done in np.linspace(0.03, 1, 50)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(config.learning_rate / 100)
    assert Schedule.at(config, 0.5).entropy_weight == pytest.approx((config.entropy_first + config.entropy_last) / 2)
