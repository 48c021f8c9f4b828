"""How often `compare` finds a difference where there is none: an arm against itself, under other seeds.

    arelu-tl sweep PICTURES --arms relu --lrs 1e-5,1e-4,1e-3 --seeds 0,1,...,23 --name null
    python benchmarks/null_verdicts.py runs/null [--seeds 3] [--draws 1000]

Draws twice as many of the study's seeds as a comparison has, calls one half of their runs arelu, and compares
the halves as two arms, with all that the command line does: everything that was chosen for each run (head rate,
statistics, start), best rates, Holm's correction. Whatever it then calls faster, slower, better or worse is false.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.analysis.results import NOT_DETECTABLE
from arelu_tl.records.runs import RunRecord, find_runs


def relabelled(run: RunRecord, arm: str, seed: int) -> RunRecord:
    """The run under another arm's name and another seed."""
    config = run.config.model_copy(update={"arm": arm, "seed": seed})
    return replace(run, config=config, surgery=None)


def main() -> None:
    """Print the shares of false verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each comparison")
    parser.add_argument("--draws", type=int, default=1000)
    asked = parser.parse_args()
    runs = [
        run
        for run in find_runs(asked.study)
        if run.config.arm == "relu" and run.status == "finished"
    ]
    rates = sorted({run.config.lr for run in runs})
    at = {(run.config.lr, run.config.seed): run for run in runs}
    seeds = sorted({seed for _, seed in at if all((lr, seed) in at for lr in rates)})
    stream = np.random.default_rng(0)
    false: Counter[str] = Counter()
    for _ in range(asked.draws):
        drawn = stream.choice(seeds, 2 * asked.seeds, replace=False)
        chosen = [
            relabelled(at[lr, int(seed)], ("relu", "arelu")[place % 2], place // 2)
            for lr in rates
            for place, seed in enumerate(drawn)
        ]
        found = compare_runs(chosen, allow_difference=("head_init", "order"))
        for each in found.rates:
            false[f"at learning rate {each.lr:g}"] += each.verdict != NOT_DETECTABLE
        for best in found.best:
            false["best rate against best rate"] += best.verdict != NOT_DETECTABLE
        holds = [e for e in (*found.rates, *found.best) if e.verdict != NOT_DETECTABLE]
        false["any of them"] += bool(holds)
        corrected = [e.p_corrected for e in holds if e.p_corrected is not None]
        false["any, after Holm's correction"] += any(p <= 0.05 for p in corrected)
    print(f"{asked.draws} draws of {asked.seeds} against {asked.seeds} of {len(seeds)} seeds")
    for question, count in false.items():
        print(f"{question}: {count / asked.draws:.1%} false verdicts")


if __name__ == "__main__":
    main()
