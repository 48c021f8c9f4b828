"""Do the intervals cover, and how often does "faster" come where there is nothing? Studies are drawn, and the rule applied.

A run's answer to a picture at an evaluation is right where the sum of these is positive: how far the training is, how hard the
picture is (the same for all), how much the arm likes the picture (the same for all its seeds), how lucky the seed was (for both
arms, and for each), how this run takes this picture (the same at all evaluations), and noise. The population is that of all
seeds and all pictures. ``python tests/analysis/simulation.py`` prints the table of docs/statistics.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arelu_tl.analysis.curves import Curve
from arelu_tl.analysis.rates import best_rate
from arelu_tl.analysis.results import AHEAD, BEHIND
from arelu_tl.analysis.statistics import PairedDifference, difference_of_shares
from arelu_tl.analysis.verdict import verdict_of
from arelu_tl.records.runs import pack_flags, step_weights

STEPS = np.arange(0, 80, 10)
PROGRESS = 4.0 * (1 - np.exp(-STEPS / 25.0)) - 2.0
WEIGHTS = step_weights(STEPS)


@dataclass(frozen=True)
class World:
    """How strong each cause is, as standard deviations on the scale of logits.

    Attributes:
        gain: how much further the arm is than its reference at every evaluation.
        seed: luck of one arm's seed. taste: of an arm for a picture.
    """

    gain: float = 0.0
    seed: float = 0.15
    taste: float = 0.7
    hard: float = 1.5
    run: float = 1.0
    noise: float = 0.5


def draw(
    stream: np.random.Generator, world: World, seeds: int, pictures: int, rates: int = 1
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """What the arm's and its reference's runs get right at each rate: each (seeds, evaluations, pictures).

    Half of an arm's taste, and of what seeds are lucky with, is the same at all rates.
    """
    half = np.sqrt(0.5)
    hard = stream.normal(0, world.hard, pictures)
    shared = stream.normal(0, 0.15, (seeds, 1, 1))
    tastes = [stream.normal(0, half * world.taste, pictures) for _ in range(2)]
    lucks = [stream.normal(0, half * world.seed, (seeds, 1, 1)) for _ in range(2)]
    drawn = []
    for _ in range(rates):
        sides = []
        for gain, taste, luck in zip((world.gain, 0.0), tastes, lucks, strict=True):
            here = (
                luck
                + stream.normal(0, half * world.seed, (seeds, 1, 1))
                + taste
                + stream.normal(0, half * world.taste, pictures)
            )
            run = stream.normal(0, world.run, (seeds, 1, pictures))
            noise = stream.normal(0, world.noise, (seeds, len(STEPS), pictures))
            sides.append(PROGRESS[:, None] + gain + shared + here + run + noise - hard > 0)
        drawn.append((sides[0], sides[1]))
    return drawn


def aulc_difference(arm: NDArray[np.bool_], reference: NDArray[np.bool_]) -> PairedDifference:
    """As ``compare`` judges one rate."""
    return difference_of_shares(
        np.einsum("k,skn->sn", WEIGHTS, arm), np.einsum("k,skn->sn", WEIGHTS, reference)
    )


def true_difference(world: World) -> float:
    """Of the mean AULCs over all seeds and pictures."""
    from scipy.stats import norm

    def area(gain: float) -> float:
        spread = np.sqrt(
            world.hard**2 + 0.15**2 + world.seed**2 + world.taste**2 + world.run**2 + world.noise**2
        )
        return float(WEIGHTS @ norm.cdf((PROGRESS + gain) / spread))

    return area(world.gain) - area(0.0)


@dataclass(frozen=True)
class Rates:
    """Attributes:
    covered: share of the studies whose interval holds the true difference; of one seed, where the pictures' blur does.
    faster, slower: share of the studies with that verdict; of one seed "ahead in this run" and "behind in this run".
    resampled: share of the studies whose bootstrap interval (seeds only) holds it; None where there is none.
    half_width: mean.
    """

    covered: float
    faster: float
    slower: float
    resampled: float | None
    half_width: float


def judge_one_rate(
    world: World, seeds: int, pictures: int, studies: int, *, seed: int = 0
) -> Rates:
    """Many studies of one rate."""
    stream = np.random.default_rng([seed, seeds, pictures])
    truth = true_difference(world)
    return _summarise(
        [aulc_difference(*draw(stream, world, seeds, pictures)[0]) for _ in range(studies)], truth
    )


def _summarise(found: list[PairedDifference], truth: float) -> Rates:
    words = [verdict_of(d, (), ("faster", "slower")) for d in found]
    reach = [d.picture_blur if d.seeds == 1 else d.half_width for d in found]
    assert None not in reach
    resampled = [
        d.bootstrap[0] <= truth <= d.bootstrap[1] for d in found if d.bootstrap is not None
    ]
    return Rates(
        covered=float(
            np.mean([abs(d.mean - truth) <= half for d, half in zip(found, reach, strict=True)])
        ),  # type: ignore[operator]
        faster=float(np.mean([word in ("faster", AHEAD) for word in words])),
        slower=float(np.mean([word in ("slower", BEHIND) for word in words])),
        resampled=float(np.mean(resampled)) if resampled else None,
        half_width=float(np.mean(reach)),  # type: ignore[arg-type]
    )


def judge_best_rates(
    world: World, seeds: int, pictures: int, studies: int, *, rates: int = 3, seed: int = 0
) -> Rates:
    """Many studies of several rates that are equally good for both arms: whoever chooses by luck is judged by it."""
    stream = np.random.default_rng([seed, seeds, pictures, rates])
    found = []
    for _ in range(studies):
        drawn = draw(stream, world, seeds, pictures, rates)
        sides = [
            best_rate(
                {float(lr): [_curve(each) for each in drawn[lr][side]] for lr in range(rates)}
            ).correct
            for side in (0, 1)
        ]
        assert sides[0] is not None
        assert sides[1] is not None
        found.append(difference_of_shares(sides[0], sides[1]))
    return _summarise(found, 0.0)


def _curve(correct: NDArray[np.bool_]) -> Curve:
    top1 = correct.mean(axis=1)
    return Curve(STEPS, top1, 1 - top1, STEPS / 1.0, tuple(map(pack_flags, correct)))


def main() -> None:
    print(
        '| | seeds | pictures | interval covers | false "faster" | false "slower" | bootstrap covers | half-width |'
    )
    print("|---|---|---|---|---|---|---|---|")
    for what, judge, studies in (
        ("one rate", judge_one_rate, 2000),
        ("best of 3 rates", judge_best_rates, 500),
    ):
        for seeds in (1, 2, 3, 5, 10):
            for pictures in (100, 1000):
                told = judge(World(), seeds, pictures, studies)
                resampled = "-" if told.resampled is None else f"{told.resampled:.1%}"
                print(
                    f"| {what} | {seeds} | {pictures} | {told.covered:.1%} | {told.faster:.1%} | {told.slower:.1%} "
                    f"| {resampled} | ±{told.half_width:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
