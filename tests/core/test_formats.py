"""Formats that the core owns: what its functions write, they read, and Python takes it from there."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from shmzero import _core
from shmzero.game.masks import mask_words, masks_of
from shmzero.inference.device import new_staging
from shmzero.nets.masks import unpack_masks
from shmzero.shm.segment import create_private

FRAMES = [(0, b"first", False), (2**64 - 1, b"", True), (7, bytes(range(256)) * 300, True)]


def test_read_frames_returns_what_pack_frame_was_given_and_leaves_what_has_not_come() -> None:
    parts = [_core.pack_frame(unit, record, last) for unit, record, last in FRAMES]
    data = b"".join(parts)
    assert _core.read_frames(data) == (FRAMES, len(data))
    for come in range(len(parts[0]) + len(parts[1])):
        frames, used = _core.read_frames(data[:come])
        assert frames == FRAMES[: (come >= len(parts[0]))] and used == len(parts[0]) * len(frames)


def test_read_frames_of_what_is_none_says_so() -> None:
    with pytest.raises(ValueError, match="frame of 3 bytes; allowed: 12 or more"):
        _core.read_frames(b"\3\0\0\0abc")


def test_pack_grant_takes_totals_of_at_most_every_seat() -> None:
    grant = _core.pack_grant(3, 2, [-5, 40])
    assert len(grant) * _core.MAX_GRANTS_PER_WRITE == 4096
    assert grant == _core.pack_grant(3, 2, [-5, 40, *[0] * (_core.MAX_PLAYERS - 2)]) != _core.pack_grant(3, 2)
    with pytest.raises(ValueError, match=r"number of totals is 9; allowed: 0\.\.8"):
        _core.pack_grant(3, 2, [0] * 9)


def test_masks_are_the_same_packed_by_the_core_and_unpacked_by_core_and_torch() -> None:
    masks = np.random.default_rng(0).random((100, _core.NUM_ACTIONS)) < 0.3
    words = mask_words(masks)
    assert words.shape == (100,) and words[0] == sum(1 << int(a) for a in np.flatnonzero(masks[0]))
    assert np.array_equal(masks_of(words), masks)
    marked = words | np.uint64(_core.OTHER_NETWORK)
    assert np.array_equal(masks_of(marked), masks), "the mark is no action"
    assert np.array_equal(unpack_masks(torch.from_numpy(marked.view(np.int64))).numpy(), masks)
    assert [_core.num_mask_words(actions) for actions in (1, 64, 65, 129)] == [1, 1, 2, 3]


def test_rows_of_other_network_are_those_that_are_marked() -> None:
    words = np.random.default_rng(1).integers(0, 1 << _core.NUM_ACTIONS, 50, dtype=np.uint64)
    words[[3, 49]] |= np.uint64(_core.OTHER_NETWORK)
    assert _core.rows_of_other_network(words).tolist() == [3, 49]
    assert _core.rows_of_other_network(words[:3]).tolist() == []


def test_worker_waits_for_servers_only_where_it_has_nothing_to_do_itself() -> None:
    with closing(create_private(1, 1, 2, 4)) as memory:
        segment = memory.segment
        worker, server = _core.WorkerPort(segment, 0), _core.ServerPort(segment, 0, 1)
        seen = {}

        def look() -> None:
            states = segment.slot_states(0)
            assert set(states) <= set(_core.SLOT_STATES)
            seen[tuple(states)] = segment.waits_for_servers(0)

        look()
        assert worker.begin(0)
        look()
        worker.publish(0, 1)
        look()
        assert worker.begin(1)
        look()
        worker.publish(1, 0)
        staging = new_staging(4)
        batch, _ = server.gather(staging.features, staging.masks, 4)
        look()
        server.scatter(batch, staging.policies, staging.values, 1)
        look()
        assert seen == {
            ("free", "free"): False,
            ("filling", "free"): False,
            ("ready", "free"): True,
            ("ready", "filling"): False,
            ("taken", "free"): True,
            ("answered", "free"): False,
        }


def test_bins_of_batches_and_waits_begin_where_the_core_says() -> None:
    assert _core.BATCH_BINS_ROWS[:4] == (1, 2, 4, 8)
    assert list(_core.WAIT_BINS_NS) == sorted(set(_core.WAIT_BINS_NS))
