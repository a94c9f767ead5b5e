"""Means with their intervals by Student's distribution, differences of groups, many p-values at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import mpmath
import numpy as np
from numpy.typing import NDArray


def two_sided_p(t: float, df: float) -> float:
    """Chance of a |t| as large under Student's distribution."""
    return float(mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True))


def t_quantile(df: float, level: float = 0.95) -> float:
    """The t that |t| stays below with chance `level`."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, df) > 1 - level else (low, middle)
    return high


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval and p-value, seeds being the unit."""

    mean: float
    low: float
    high: float
    p: float


def difference(rows: Sequence[float], columns: Sequence[float], mean: float) -> Difference:
    """Of two groups of seeds: `rows` and `columns` are what each seed of the one and of the other comes to on average.

    Welch's interval, whose degrees of freedom are those of both groups' variances.
    """
    parts = [statistics.variance(group) / len(group) for group in (rows, columns)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    df = sum(parts) ** 2 / sum(v * v / (len(g) - 1) for v, g in zip(parts, (rows, columns), strict=True))
    margin = t_quantile(df) * error
    return Difference(mean, mean - margin, mean + margin, two_sided_p(mean / error, df))


def crossed(scores: NDArray[np.float64]) -> Difference:
    """Of scores [seeds of the arm, seeds of the other] of matches between them."""
    return difference(scores.mean(axis=1).tolist(), scores.mean(axis=0).tolist(), float(scores.mean()))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    corrected = [0.0] * len(ps)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return corrected
