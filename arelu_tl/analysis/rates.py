"""Compare best rate with best rate: each arm at the learning rate to which a person would tune it.

If the same pictures chose the rate and the checkpoint and then judged them, the result would be too
good for both arms, and most for the one with more to choose from. So the choice is cross-fitted.
The validation pictures are split into folds. For each fold, an arm's rate is the one whose best
checkpoints were most accurate on the *other* folds (mean over seeds), and a run's checkpoint is its
best on the other folds. Only then are they judged on the fold that was left out.

The seeds are not held out in the same way: choosing for each seed by the others makes the seeds'
results depend on each other, and intervals too short (as ``tests/analysis/simulation.py`` has
shown). A choice that benefits from lucky seeds does so for both arms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arelu_tl.analysis.curves import Curve

FOLDS = 5
_FOLD_SEED = 20061385


@dataclass(frozen=True)
class BestRate:
    """What one arm reaches at its best rate.

    Attributes:
        lr: the rate that was chosen most often.
        choices: how often each rate was chosen, as shares of 1.
        accuracy: cross-fitted accuracy of each seed, float64 (S,).
        correct: the same per picture, float64 (S, N) of 0 and 1; None if pictures were not
            recorded, in which case all pictures have both chosen and judged.
    """

    lr: float
    choices: dict[float, float]
    accuracy: NDArray[np.float64]
    correct: NDArray[np.float64] | None


def best_rate(curves: Mapping[float, Sequence[Curve]], *, cross_fit: bool = True) -> BestRate:
    """Choose an arm's rate and judge it.

    Args:
        curves: for each rate tried, one curve per seed, with the same seeds in the same order at
            every rate.
        cross_fit: False if some run in the comparison has no results per picture; then all pictures
            both choose and judge.
    """
    rates = sorted(curves)
    seeds = len(curves[rates[0]])
    folds = _folds(curves) if cross_fit else None
    counted = {lr: [_outside(each, folds) for each in of_seeds] for lr, of_seeds in curves.items()}
    chosen: Counter[float] = Counter()
    right = None if folds is None else np.zeros((seeds, len(folds)))
    accuracy = np.zeros(seeds)
    for fold in range(counted[rates[0]][0].shape[1]):
        # Accuracy of each run's best checkpoint on all pictures outside the fold.
        scores = [np.mean([each[:, fold].max() for each in counted[lr]]) for lr in rates]
        lr = rates[int(np.argmax(scores))]
        chosen[lr] += 1
        for seed in range(seeds):
            checkpoint = int(counted[lr][seed][:, fold].argmax())
            if folds is None or right is None:
                accuracy[seed] = curves[lr][seed].top1[checkpoint]
            else:
                inside = folds == fold
                right[seed, inside] = curves[lr][seed].right(checkpoint)[inside]
    if right is not None:
        accuracy = right.mean(axis=1)
    lr = max(rates, key=lambda rate: (chosen[rate], -rate))
    return BestRate(
        lr=lr,
        choices={rate: chosen[rate] / chosen.total() for rate in rates if chosen[rate]},
        accuracy=accuracy,
        correct=right,
    )


def _folds(curves: Mapping[float, Sequence[Curve]]) -> NDArray[np.int64] | None:
    """Return the fold of each picture (N,), the same for both arms.

    None if a run has not recorded its pictures, or has others.
    """
    counts = {each.pictures for of_seeds in curves.values() for each in of_seeds}
    pictures = counts.pop()
    if counts or pictures is None or pictures < 2:
        return None
    order = np.random.default_rng(_FOLD_SEED).permutation(pictures)
    return np.asarray(order % min(FOLDS, pictures), dtype=np.int64)


def _outside(curve: Curve, folds: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Return the accuracy of each evaluation on the pictures outside each fold, (K, F).

    Without folds, it is the accuracy on all pictures, (K, 1).
    """
    if folds is None:
        return curve.top1[:, None]
    members = np.eye(int(folds.max()) + 1, dtype=np.float32)[folds]
    inside = curve.correct().astype(np.float32) @ members
    return np.asarray(
        (inside.sum(1, keepdims=True) - inside) / (len(folds) - members.sum(0)), dtype=float
    )
