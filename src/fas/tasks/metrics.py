"""Metrics of labelled tasks, by name, from scikit-learn and SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def scored(names: Sequence[str], predicted: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Each metric of ``predicted`` against ``wanted`` ``[N]`` (class numbers, or real values for correlations).

    ``f1`` is that of class 1. A correlation that is not defined, because all predictions are the same, counts as 0.
    """
    return {name: _METRICS[name](predicted, wanted) for name in names}


def _accuracy(predicted: np.ndarray, wanted: np.ndarray) -> float:
    return float((predicted == wanted).mean())


def _f1(predicted: np.ndarray, wanted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(wanted, predicted, zero_division=0))


def _matthews(predicted: np.ndarray, wanted: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(wanted, predicted))


def _pearson(predicted: np.ndarray, wanted: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _or_zero(predicted, wanted, pearsonr)


def _spearman(predicted: np.ndarray, wanted: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _or_zero(predicted, wanted, spearmanr)


def _or_zero(predicted: np.ndarray, wanted: np.ndarray, correlation: Callable[..., Any]) -> float:
    if np.ptp(predicted) == 0 or np.ptp(wanted) == 0:
        return 0.0
    found = float(correlation(predicted, wanted)[0])
    return 0.0 if math.isnan(found) else found


_METRICS = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews, "pearson": _pearson, "spearman": _spearman}
