"""Percentiles out of the histograms that servers count."""

from __future__ import annotations

from shmzero import _core


def percentile_us(waits: list[int], share: float) -> float:
    """The upper end of the bin in which so large a share of the waiting times lies; 0 without any."""
    left = share * sum(waits)
    for bin_, count in enumerate(waits):
        left -= count
        if count and left <= 0:
            return _core.WAIT_BINS_NS[min(bin_ + 1, len(waits) - 1)] / 1000
    return 0.0
