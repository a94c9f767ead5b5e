"""What a fleet keeps in order without any process: its units, and the versions of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmzero.engine.units import Units
from shmzero.engine.weights import CheckpointFile, Weights, WeightsVersions
from shmzero.errors import ConfigError


def test_units_that_are_given_back_are_handed_out_first() -> None:
    units = Units(range(10, 14), 4, {})
    assert units.hand_out(2) == [10, 11]
    units.give_back([11])
    assert units.hand_out(2) == [11, 12] and units.hand_out(9) == [13] and units.hand_out(9) == []


def test_units_are_finished_with_all_their_records_and_taken_once() -> None:
    units = Units(range(2), 2, {1: [b"first"]})
    units.add_record(1, b"second", is_last=False)
    assert units.in_progress == {1: [b"first", b"second"]} and units.left == 2
    units.add_record(0, b"only", is_last=True)
    units.add_record(1, b"third", is_last=True)
    assert units.left == 0 and units.in_progress == {}
    assert units.take_finished() == [(0, [b"only"]), (1, [b"first", b"second", b"third"])]
    assert units.take_finished() == []


def test_units_that_are_added_follow_those_that_were_there_with_the_records_of_their_finished_rounds() -> None:
    units = Units(iter(()), 0, {})
    assert units.hand_out(1) == [] and units.left == 0
    units.add({7: [], 3: [b"first"]})
    assert units.left == 2 and units.hand_out(9) == [7, 3] and units.in_progress == {3: [b"first"]}
    units.add({9: []})
    units.add_record(3, b"second", is_last=True)
    units.add_record(7, b"only", is_last=True)
    assert units.hand_out(9) == [9] and units.left == 1
    assert units.take_finished() == [(3, [b"first", b"second"]), (7, [b"only"])]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"weights")
    return path


def test_weights_that_are_refused_are_offered_to_nobody_and_those_taken_are_served(file: Path) -> None:
    versions = WeightsVersions(3, file)
    assert versions.offered is None and versions.publish(file, None).version == 4
    assert versions.offered is not None and versions.offered.version == 4
    versions.set_refused(4)
    assert versions.offered is None and versions.served.version == 3
    versions.publish(file, 9)
    versions.set_taken(9)
    assert versions.served.version == versions.newest == 9 and versions.offered is None
    assert versions.publish(file, 2).version == 10
    versions.close()


def test_weights_are_closed_when_no_process_can_be_about_to_read_them(file: Path) -> None:
    versions = WeightsVersions(0, file)
    first, second = versions.served, versions.publish(file, None)
    versions.set_taken(1)
    versions.close_older(0)
    assert first.fd >= 0
    versions.close_older(1)
    assert first.fd < 0 and second.fd >= 0
    assert versions.with_paths(f"{second.name} is bad") == f"{file} is bad"
    versions.close()
    assert second.fd < 0


def test_weights_by_value_are_read_by_children_as_a_copy_of_the_file_is(file: Path) -> None:
    read = CheckpointFile.read(file)
    by_value, copied = Weights.copied(1, read), Weights.copied(1, file)
    file.unlink()
    assert by_value.name is not None and Path(by_value.name).read_bytes() == b"weights"
    assert by_value.digest() == copied.digest() and by_value.path == copied.path == str(file)
    assert by_value.with_path(f"{by_value.name} is bad") == f"{file} is bad"
    for weights in (by_value, copied):
        weights.close()


def test_checkpoint_that_cannot_be_read_is_refused_and_costs_no_version(file: Path) -> None:
    with pytest.raises(ConfigError, match="none cannot be read: No such file"):
        WeightsVersions(0, file.parent / "none")
    versions = WeightsVersions(0, None)
    with pytest.raises(OSError):
        versions.publish(file.parent / "none", None)
    assert versions.newest == 0 and versions.served.name is None
    versions.close()
