"""Which cell of a sweep comes next, and whether there is time for it. Knows no clock: it is told how late it is."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from statistics import fmean

from arelu_tl.experiment.launch.cell import Cell


class Schedule:
    """Hands out cells block by block; a block is all arms at one learning rate and seed. ``waiting``: how many there were.

    With a budget a block is begun only if it is predicted to end within it, and a begun block is always finished: no arm
    gets a run that another was denied. Blocks that an earlier invocation had begun come first, and in them the runs that
    were interrupted.
    """

    def __init__(self, cells: Sequence[Cell], seconds: Mapping[str, float], *, slots: int, budget: float | None = None) -> None:
        """
        Args:
            cells: the whole grid; those with nothing left to train only tell which blocks were begun.
            seconds: for each waiting cell's name what it will take by itself.
            slots: how many are trained at once.
            budget: seconds there are; None for any number.
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
        """The cell to begin now, after ``elapsed`` seconds; None where none is left or there is no time for its block."""
        if not self._begun and self._blocks and self.fits(elapsed):
            self._begun.extend(self._blocks.popleft())
        if not self._begun:
            return None
        cell = self._begun.popleft()
        self._running[cell.name] = cell, elapsed
        return cell

    def ended(self, cell: Cell, seconds: float | None) -> None:
        """``cell`` is no longer trained; ``seconds`` is what it took, None where that says nothing about others."""
        del self._running[cell.name]
        if seconds is not None:
            self._measured[cell.config.arm].append(seconds / self._seconds[cell.name])

    def fits(self, elapsed: float) -> bool:
        """Whether the next block, begun now, is predicted to end within the budget."""
        return self._budget is None or not self._blocks or elapsed + self.block_seconds(elapsed) <= self._budget

    def block_seconds(self, elapsed: float) -> float:
        """How long from now it would take until the next block and all that is begun were done."""
        block = [self._predicted(cell) for cell in self._blocks[0]]
        # However many are trained at once, the longest run takes its time.
        return max((self._begun_seconds(elapsed) + sum(block)) / self._slots, *block)

    def to_go(self, elapsed: float) -> float:
        """How long from now it would take until every cell was done."""
        waiting = sum(self._predicted(cell) for block in self._blocks for cell in block)
        return (self._begun_seconds(elapsed) + waiting) / self._slots

    def left(self) -> list[Cell]:
        """The cells whose block has not been begun, the next one first."""
        return [cell for block in self._blocks for cell in block]

    def _begun_seconds(self, elapsed: float) -> float:
        running = sum(max(0.0, self._predicted(cell) - (elapsed - began)) for cell, began in self._running.values())
        return running + sum(self._predicted(cell) for cell in self._begun)

    def _predicted(self, cell: Cell) -> float:
        """From the rehearsal, put right by what runs of its arm (or, before there is one, of the others) took in truth."""
        ratios = self._measured.get(cell.config.arm) or [ratio for measured in self._measured.values() for ratio in measured]
        return self._seconds[cell.name] * (fmean(ratios) if ratios else 1.0)


def _urgency(block: Sequence[Cell]) -> int:
    if any(cell.begun for cell in block):
        return 0
    return 1 if any(cell.status != "missing" for cell in block) else 2


def _fresh(cell: Cell) -> bool:
    return not cell.begun
