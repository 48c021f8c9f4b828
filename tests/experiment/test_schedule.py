"""Which cell comes next, and whether there is time for it: no arm gets a run that another was denied."""

from __future__ import annotations

from pathlib import Path

import pytest

from arelu_tl.experiment.launch.cell import Cell
from arelu_tl.experiment.launch.schedule import Schedule
from arelu_tl.records.config import SweepConfig

ARMS, LRS, SEEDS = ["relu", "arelu"], [1e-3, 1e-2], [0, 1]


def cells(**statuses: str) -> list[Cell]:
    """The grid, by default all missing; a status is given by ARM_LR_SEED, LR as its place in LRS."""
    config = SweepConfig(arms=ARMS, lrs=LRS, seeds=SEEDS)  # type: ignore[arg-type]
    named = [(each, f"{each.arm}_{LRS.index(each.lr)}_{each.seed}") for each in config.cells()]
    return [
        Cell(n, each, Path(name), statuses.get(name, "missing"))
        for n, (each, name) in enumerate(named, start=1)
    ]


def schedule(
    planned: list[Cell], *, slots: int = 1, budget: float | None = None, seconds: float = 10.0
) -> Schedule:
    return Schedule(
        planned, dict.fromkeys((cell.name for cell in planned), seconds), slots=slots, budget=budget
    )


def run(
    plan: Schedule, *, takes: dict[str, float] | float = 10.0, slots: int = 1
) -> tuple[list[str], float]:
    """Train everything on a clock of our own: (names in the order in which they were begun, when the last one ended)."""
    now, order = 0.0, []
    running: dict[str, tuple[float, Cell]] = {}
    while True:
        while len(running) < slots and (cell := plan.next(now)) is not None:
            length = takes if isinstance(takes, float) else takes[cell.config.arm]
            running[cell.name] = now + length, cell
            order.append(cell.name)
        if not running:
            return order, now
        now, cell = min(running.values(), key=lambda each: each[0])
        began = now - (takes if isinstance(takes, float) else takes[cell.config.arm])
        del running[cell.name]
        plan.ended(cell, now - began)


def test_without_a_budget_the_grid_is_trained_block_by_block() -> None:
    order, _ = run(schedule(cells()))
    assert order == [cell.name for cell in cells()]


def test_what_was_begun_before_comes_first_and_what_was_interrupted_first_of_all() -> None:
    planned = cells(
        arelu_1_1="interrupted", relu_1_0="finished", relu_0_0="failed", arelu_0_0="finished"
    )
    order, _ = run(schedule(planned))
    assert order == ["arelu_1_1", "relu_1_1", "arelu_1_0", "relu_0_1", "arelu_0_1"]


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("budget", [20.0, 35.0, 45.0, 70.0, 1000.0])
def test_a_begun_block_is_whole_and_in_time(budget: float, slots: int) -> None:
    plan = schedule(cells(), slots=slots, budget=budget)
    order, end = run(plan, slots=slots)
    assert order
    blocks = {name.split("_", 1)[1] for name in order}
    assert sorted(order) == sorted(f"{arm}_{block}" for block in blocks for arm in ARMS)
    assert end <= budget
    assert {cell.name for cell in plan.left()} == {cell.name for cell in cells()} - set(order)


def test_what_runs_took_in_truth_puts_the_prediction_right() -> None:
    # Predicted at 10 s each, 80 s would hold all eight; the arm arelu takes 30 s, which is known after the first block.
    plan = schedule(cells(), budget=80.0)
    order, end = run(plan, takes={"relu": 10.0, "arelu": 30.0})
    assert len(order) == 4
    assert end == 80.0
    # And if it is faster than predicted, more are trained than was thought.
    order, _ = run(schedule(cells(), budget=25.0), takes=2.0)
    assert len(order) == 8


def test_a_block_ends_no_sooner_than_its_longest_run() -> None:
    plan = schedule(cells(), slots=8, budget=9.0)
    assert not plan.fits(0.0)
    assert plan.block_seconds(0.0) == 10.0
    assert plan.next(0.0) is None
    assert schedule(cells(), slots=8, budget=10.0).fits(0.0)


def test_time_to_go_is_shared_and_counts_what_runs() -> None:
    plan = schedule(cells(), slots=2)
    assert plan.to_go(0.0) == 40.0
    first = plan.next(0.0)
    assert first is not None
    assert plan.to_go(6.0) == 37.0
    plan.ended(first, 20.0)
    assert plan.to_go(20.0) == 70.0
