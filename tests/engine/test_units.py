"""What a fleet keeps in order without any process: its units, and the versions of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmzero.engine.units import Units
from shmzero.engine.weights import WeightsVersions
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


def test_checkpoint_that_cannot_be_read_is_refused_and_costs_no_version(file: Path) -> None:
    with pytest.raises(ConfigError, match="none cannot be read: No such file"):
        WeightsVersions(0, file.parent / "none")
    versions = WeightsVersions(0, None)
    with pytest.raises(OSError):
        versions.publish(file.parent / "none", None)
    assert versions.newest == 0 and versions.served.name is None
    versions.close()
