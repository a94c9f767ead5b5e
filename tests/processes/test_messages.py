"""Messages between processes: each comes out as it went in, and what is of another version is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from shmzero.engine.messages import WorkerSpec
from shmzero.errors import MessageError
from shmzero.game.deals import Deals
from shmzero.inference import messages as inference
from shmzero.learner import messages as learner
from shmzero.learner.config import LearnerConfig
from shmzero.matches import messages as matches
from shmzero.mcts.config import SearchConfig
from shmzero.processes.messages import Kinds, Message, encode

DEVICE = inference.DeviceSpec("cuda:1", 8192, 2, precision="bf16", checkpoint="/proc/1/fd/7", searched=True)
RATED = {"step 9": matches.AgentRating(110.5, 90.0, 130.0), "random": matches.AgentRating(0.0, -1.0, 1.0)}
EXAMPLES: list[Message] = [
    WorkerSpec(
        segment_fd=5, grant_fd=6, record_fd=7, worker=3, lanes=64, spin_us=50.0, search=SearchConfig(simulations=20),
        deals=Deals(players="3-6"), seed=2**64 - 1, games=False, opponent_pool="threshold:0.2",
    ),
    inference.InferenceSpec(5, 6, 0, 1, DEVICE, 4, 2.0, 0.0),
    inference.TakeWeights("/proc/1/fd/7", 5),
    inference.TakeWeights(None, 6),
    inference.TakeOther("step \udc80.safetensors"),
    inference.DeviceRefused("no such device"),
    inference.Ready("a network\nof two lines"),
    inference.WeightsTaken(5),
    inference.WeightsRefused(5, "it ends too early"),
    inference.OtherRefused("old.safetensors", "it ends too early"),
    inference.NetworkCompiled("serves the compiled network"),
    learner.LearnerSpec(5, 6, 7, Path("runs/a"), LearnerConfig(buffer=2000), "cpu", 2, 0.25, 7, True),
    learner.RunProgress(1.0, 9),
    learner.Finish(1, 9, False),
    learner.SettingsRefused("too large"),
    learner.FolderFailed("no space left"),
    learner.Ready(0, 4096),
    learner.PauseWanted(True),
    learner.Learned(10, 20, 0, 1.5, 2.0, 0.5, 0.0, 1e-3, {"loss": 0.5}),
    learner.WeightsPublished(Path("weights/00000007.safetensors"), 7),
    learner.CheckpointSaved(100),
    learner.Finished(100),
    matches.MatchesSpec(
        control_fd=5, pulse_fd=6, checkpoint=Path("checkpoints/00000009.safetensors"), opponents=("random", "mc900"),
        modes=("one", "rest"), deals=100, deals_rated=50, players="4", cards="5", trump="random", games=False, niceness=5,
        rate=True, threads=1,
    ),
    matches.MatchPlayed("random", "one", False, 100, 1.5, 1.0, 2.0, {5: 0.5}, 0.5, 0.25, 9, 3.0),
    matches.CheckpointRated(9, 50, 110.5, 90.0, 130.0, RATED),
]  # fmt: skip
MODULES = (inference, learner, matches)


def all_kinds() -> set[type[Message]]:
    """Every class of messages that the rooms declare."""
    found: set[type[Message]] = {WorkerSpec}
    for module in MODULES:
        found |= {
            one for one in vars(module).values()
            if isinstance(one, type) and issubclass(one, Message) and one.__module__ == module.__name__
        }  # fmt: skip
    return found


def test_every_message_of_every_room_has_an_example_here() -> None:
    assert {type(example) for example in EXAMPLES} == all_kinds()


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: f"{type(message).__module__}.{message.kind}")
def test_message_comes_out_as_it_went_in(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert Kinds(type(message)).decode(line) == message


@pytest.mark.parametrize("module", MODULES)
def test_events_and_commands_of_a_room_are_of_different_kinds(module: Any) -> None:
    kinds = [kind.__name__ for kind in all_kinds() if kind.__module__ == module.__name__]
    assert len(kinds) == len(set(kinds))
    assert {example.kind for example in EXAMPLES if type(example).__module__ == module.__name__} == set(kinds)


def changed(original: Message, **fields: object) -> bytes:
    return json.dumps(json.loads(encode(original)) | fields).encode()


def test_message_of_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(
        MessageError, match="a message is of kind 'Restart'; allowed: TakeWeights, TakeOther; .*version"
    ):
        inference.COMMANDS.decode(b'{"kind": "Restart"}')
    with pytest.raises(MessageError, match="of kind 'Ready'; allowed: TakeWeights, TakeOther"):
        inference.COMMANDS.decode(encode(inference.Ready("an event is no command")))


def test_field_that_is_unknown_or_missing_is_refused_by_name() -> None:
    with pytest.raises(MessageError, match="WeightsTaken has an unknown field 'colour'; known: version"):
        inference.EVENTS.decode(changed(inference.WeightsTaken(1), colour="red"))
    with pytest.raises(MessageError, match="WeightsRefused lacks the field 'message'"):
        inference.EVENTS.decode(b'{"kind": "WeightsRefused", "version": 1}')
    spec = inference.InferenceSpec(5, 6, 0, 1, DEVICE, 4, 2.0, 0.0)
    nested = dataclasses.asdict(DEVICE) | {"colour": "red"}
    with pytest.raises(MessageError, match="InferenceSpec.device has an unknown field 'colour'"):
        Kinds(inference.InferenceSpec).decode(changed(spec, device=nested))


@pytest.mark.parametrize(("field", "value"), [("version", "1"), ("version", True), ("version", 1.5), ("message", None)])
def test_value_of_another_type_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(MessageError, match=f"WeightsRefused.{field} is "):
        inference.EVENTS.decode(changed(inference.WeightsRefused(1, "bad"), **{field: value}))


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'"kind"', b"{}"])
def test_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(MessageError, match="is no JSON|has no kind"):
        learner.EVENTS.decode(line)
