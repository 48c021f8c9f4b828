"""The paper's table from the runs of a reproduction: accuracy after the first epoch, and AReLU beside the best of its rivals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from arelu_tl.analysis.results import Spread
from arelu_tl.records.runs import RunRecord

ARELU = "arelu"
FIXED, LEARNABLE = "fixed", "learnable"


@dataclass(frozen=True)
class Entry:
    """One activation in one column. Accuracies 0..1.

    Attributes:
        seeds: of its trainings, in order; every ``values`` is in theirs.
        first: after the first epoch.
        best: the best at any evaluation.
        before: before the first step, which tells something where nets were trained before.
        aulc: mean accuracy on the way.
        diverged: how many trainings ended in numbers that are none; what was left of them counts all the same.
        curve: "step", "mean", "low", "high": of all trainings at each evaluation.
    """

    activation: str
    seeds: list[int]
    first: Spread
    best: Spread
    before: Spread
    aulc: Spread
    diverged: int
    curve: dict[str, list[float]]


@dataclass(frozen=True)
class Column:
    """All activations under one optimiser and rate.

    Attributes:
        study: the folder of its runs.
        best: of each group of rivals the one with the best mean after the first epoch; without a group that is not there.
        lead: AReLU's mean minus that rival's.
        rank: AReLU's place among all, 1 for the best; None where it is not there.
        of: how many there are.
    """

    study: str
    opt: str
    lr: float
    entries: dict[str, Entry]
    best: dict[str, str]
    lead: dict[str, float]
    rank: int | None
    of: int

    @property
    def optimiser(self) -> str:
        """Its usual name."""
        return {"sgd": "SGD", "adam": "Adam"}[self.opt]

    @property
    def direction(self) -> str:
        """Of a transfer, from which set to which."""
        return self.study.replace("-to-", " → ")


@dataclass(frozen=True)
class Reproduction:
    """Attributes:
    activations: the rows, in the paper's order.
    groups: of each activation "fixed" or "learnable".
    titles: as the paper prints them.
    notes: what a reader must know, in sentences.
    """

    activations: list[str]
    groups: dict[str, str]
    titles: dict[str, str]
    columns: list[Column]
    notes: list[str]
    transfer: bool

    def to_json(self) -> dict[str, Any]:
        """Content of reproduction.json."""
        return asdict(self)


def tabulate(
    studies: Mapping[str, Sequence[RunRecord]],
    *,
    titles: Mapping[str, str],
    learnable: Sequence[str],
    notes: Sequence[str] = (),
    transfer: bool = False,
) -> Reproduction:
    """The table of the runs of each study that have ended, diverged ones included.

    Args:
        studies: runs by the study's name, each of one optimiser.
        titles: of the activations, in the order of the rows.
        learnable: which of them learn; AReLU is no rival of its own.
    """
    cells: dict[tuple[str, str, float], dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for study, members in studies.items():
        for run in sorted(members, key=lambda run: run.config.seed):
            if run.summary:
                cells[study, run.config.opt, run.config.lr][run.config.arm].append(run)
    groups = {name: LEARNABLE if name in learnable else FIXED for name in titles}
    order = list(studies)
    told = sorted(cells.items(), key=lambda cell: (order.index(cell[0][0]), -cell[0][2]))
    columns = [_column(*key, members, [name for name in titles if name in members], groups) for key, members in told]
    there = [name for name in titles if any(name in column.entries for column in columns)]
    kept = {name: titles[name] for name in there}
    return Reproduction(there, {name: groups[name] for name in there}, kept, columns, [*notes, *_told_losses(columns)], transfer)


def _column(
    study: str,
    opt: str,
    lr: float,
    members: Mapping[str, Sequence[RunRecord]],
    names: Sequence[str],
    groups: Mapping[str, str],
) -> Column:
    entries = {name: _entry(name, members[name]) for name in names}
    means = {name: entry.first.mean for name, entry in entries.items()}
    best = {}
    for group in (FIXED, LEARNABLE):
        rivals = [name for name in names if groups[name] == group and name != ARELU]
        if rivals:
            best[group] = max(rivals, key=lambda name: means[name])
    ours = means.get(ARELU)
    lead = {} if ours is None else {group: ours - means[name] for group, name in best.items()}
    rank = None if ours is None else 1 + sum(mean > ours for mean in means.values())
    return Column(study, opt, lr, entries, best, lead, rank, len(entries))


def _entry(activation: str, members: Sequence[RunRecord]) -> Entry:
    curves = [{row["step"]: row for row in run.curve("val")} for run in members]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step]["top1"] for step in steps] for curve in curves])
    # An epoch's end is evaluated whatever else is.
    first = [next(row["top1"] for row in curve.values() if row["epoch"] == 1) for curve in curves]
    return Entry(
        activation=activation,
        seeds=[run.config.seed for run in members],
        first=_spread(first),
        best=_spread(values.max(1).tolist()),
        before=_spread(values[:, 0].tolist()),
        aulc=_spread([run.summary["aulc"] for run in members]),
        diverged=sum(run.status == "failed" for run in members),
        curve={
            "step": [float(step) for step in steps],
            "mean": values.mean(0).tolist(),
            "low": values.min(0).tolist(),
            "high": values.max(0).tolist(),
        },
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, list(values))


def _told_losses(columns: Sequence[Column]) -> list[str]:
    lost = [
        f"{entry.activation} {column.study} {column.lr:g}: {entry.diverged} of {len(entry.seeds)}"
        for column in columns
        for entry in column.entries.values()
        if entry.diverged
    ]
    return [
        f"† trainings whose loss became no finite number, counted with the accuracy that was left: {'; '.join(lost)}."
    ] * bool(lost)
