"""Decide which cell of a sweep comes next, and whether there is time for it.

The schedule has no clock: callers pass the elapsed time.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from statistics import fmean

from arelu_tl.experiment.launch.cell import Cell


class Schedule:
    """Hands out cells block by block; a block is all arms at one learning rate and seed.

    With a time budget a block is begun only if it is predicted to end within the budget, and a
    block that was begun is always finished, so that all arms get the same runs. Blocks that an
    earlier invocation had begun come first, and in them the interrupted runs.

    Attributes:
        waiting: number of cells to train when the schedule was made.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        seconds: Mapping[str, float],
        *,
        slots: int,
        budget: float | None = None,
    ) -> None:
        """Order the blocks of ``cells``.

        Args:
            cells: the whole grid; cells with nothing left to train only show which blocks were
                begun.
            seconds: for each waiting cell's name, the seconds it takes when it runs alone.
            slots: how many cells are trained at once.
            budget: time budget in seconds; None for no limit.
        """
        blocks: dict[tuple[int, float], list[Cell]] = defaultdict(list)
        for cell in cells:
            blocks[cell.config.seed, cell.config.lr].append(cell)
        ordered = sorted(blocks.values(), key=_urgency)
        waiting = ([cell for cell in sorted(block, key=_fresh) if cell.waits] for block in ordered)
        self._blocks = deque(block for block in waiting if block)
        self.waiting = sum(map(len, self._blocks))
        self._seconds = dict(seconds)
        self._slots = max(1, slots)
        self._budget = budget
        self._begun: deque[Cell] = deque()
        self._running: dict[str, tuple[Cell, float]] = {}
        self._measured: dict[str, list[float]] = defaultdict(list)

    def next(self, elapsed: float) -> Cell | None:
        """Return the cell to begin after ``elapsed`` seconds; None if none is left or fits."""
        if not self._begun and self._blocks and self.fits(elapsed):
            self._begun.extend(self._blocks.popleft())
        if not self._begun:
            return None
        cell = self._begun.popleft()
        self._running[cell.name] = cell, elapsed
        return cell

    def ended(self, cell: Cell, seconds: float | None) -> None:
        """Record that training of ``cell`` has ended.

        Args:
            seconds: its duration; None if it says nothing about other cells.
        """
        del self._running[cell.name]
        if seconds is not None:
            self._measured[cell.config.arm].append(seconds / self._seconds[cell.name])

    def fits(self, elapsed: float) -> bool:
        """Return whether the next block, begun now, is predicted to end within the budget."""
        return (
            self._budget is None
            or not self._blocks
            or elapsed + self.block_seconds(elapsed) <= self._budget
        )

    def block_seconds(self, elapsed: float) -> float:
        """Return the seconds from now until the next block and all begun cells would be done."""
        block = [self._predicted(cell) for cell in self._blocks[0]]
        # The longest run is a lower bound, however many are trained at once.
        return max((self._begun_seconds(elapsed) + sum(block)) / self._slots, *block)

    def to_go(self, elapsed: float) -> float:
        """Return the seconds from now until every cell would be done."""
        waiting = sum(self._predicted(cell) for block in self._blocks for cell in block)
        return (self._begun_seconds(elapsed) + waiting) / self._slots

    def left(self) -> list[Cell]:
        """Return the cells whose block has not been begun, the next one first."""
        return [cell for block in self._blocks for cell in block]

    def _begun_seconds(self, elapsed: float) -> float:
        running = sum(
            max(0.0, self._predicted(cell) - (elapsed - began))
            for cell, began in self._running.values()
        )
        return running + sum(self._predicted(cell) for cell in self._begun)

    def _predicted(self, cell: Cell) -> float:
        """Predict from the rehearsal, corrected by finished runs of its arm, else of others."""
        ratios = self._measured.get(cell.config.arm) or [
            ratio for measured in self._measured.values() for ratio in measured
        ]
        return self._seconds[cell.name] * (fmean(ratios) if ratios else 1.0)


def _urgency(block: Sequence[Cell]) -> int:
    if any(cell.begun for cell in block):
        return 0
    return 1 if any(cell.status != "missing" for cell in block) else 2


def _fresh(cell: Cell) -> bool:
    return not cell.begun
