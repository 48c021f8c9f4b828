"""Decide which runs may be compared: those that differ only in the arm.

All others are refused with an error that names the differences.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arelu_tl.analysis.curves import Curve, read_curve
from arelu_tl.errors import ComparisonError, ConfigError, DataError
from arelu_tl.records.config import ARM_KEYS, PLACE_KEYS
from arelu_tl.records.runs import RunRecord, common_steps

BASELINE = "relu"
# What both runs of a pair must share besides their settings, by key of summary.json's "pairing".
SHARED = {
    "dataset": "pictures or split",
    "head_init": "head initialisation",
    "weights": "pretrained weights",
}
_ORDER = "order"
# Settings that determine the initial head, or the order or augmentation.
_HEAD_FOLLOWS = frozenset({"seed", "model", "img_size", "dataset"})
_ORDER_FOLLOWS = frozenset(
    {
        "seed",
        "dataset",
        "train_split",
        "val_split",
        "val_fraction",
        "split_seed",
        "batch_size",
        "model",
        "img_size",
    }
    | {"no_aug", "scale", "hflip", "color_jitter", "aa", "reprob", "on_bad_image"}
)
# The grid's axes: each rate is compared with itself, and best with best; each seed with itself.
_GRID = frozenset({"lr", "seed"})


@dataclass(frozen=True)
class Entrant:
    """A run that takes part, with the name of its arm in this comparison."""

    run: RunRecord
    curve: Curve
    arm: str

    @property
    def lr(self) -> float:
        return self.run.config.lr

    @property
    def seed(self) -> int:
        return self.run.config.seed

    @property
    def finished(self) -> bool:
        return self.run.status == "finished"


@dataclass(frozen=True)
class Failure:
    """A failed run; silently leaving it out would favour the arm that fails."""

    path: str
    arm: str
    lr: float
    seed: int
    reason: str


@dataclass(frozen=True)
class Field:
    """All runs that take part, and why others do not.

    Attributes:
        entrants: comparable runs, one per cell.
        failed: runs that failed, and so have no end to compare.
        waiting: runs that have not been evaluated yet.
        spare: runs of a cell that another run already represents.
        left_out: runs that failed under other settings, or whose cell another run has finished.
        allowed: differences that the user allowed, in words.
    """

    entrants: list[Entrant]
    failed: list[Failure] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    spare: list[Entrant] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)


def gather(runs: Sequence[RunRecord], allow: Collection[str] = ()) -> Field:
    """Select the runs that may take part in one comparison.

    Args:
        runs: as read from their folders.
        allow: settings (or dataset, head_init, weights, order) that may differ.

    Raises:
        ConfigError: ``allow`` names something that is not a setting, or an axis of the grid.
        DataError: no run has been evaluated yet.
        ComparisonError: the runs differ in more than arm, learning rate and seed; the message names
            the differences.
    """
    _check_allowed(allow, runs)
    begun = [(run, read_curve(run)) for run in runs if run.status != "failed"]
    evaluated = [(run, curve) for run, curve in begun if curve is not None]
    waiting = [str(run.path) for run, curve in begun if curve is None]
    if not evaluated:
        raise DataError(
            f"none of {len(runs)} runs has been evaluated yet: try again after the first evaluation"
        )
    # A finished run has recorded all measures, so it represents its cell before one that still
    # trains.
    evaluated.sort(key=lambda each: (each[0].status != "finished", str(each[0].path)))
    kinds: dict[tuple[str | None, ...], RunRecord] = {}
    for run, _ in evaluated:
        # Weights that were not pretrained are drawn from the seed, which is an axis of the grid.
        weights = recorded(run, "weights") if run.config.pretrained else None
        kinds.setdefault((_setting(run), recorded(run, "dataset"), weights), run)
    first, *others = kinds.values()
    conflicts = [
        (apart, run) for run in others if (apart := differences(first, run, {*allow, *_GRID}))
    ]
    if conflicts:
        apart, nearest = min(conflicts, key=lambda found: len(found[0]))
        raise ComparisonError(
            f"{_short(first)} and {_short(nearest)} differ in more than the arm: "
            f"{'; '.join(apart)} (name runs that belong together, or insist with "
            "`allow_difference=KEY`)"
        )
    insisted = {text for run in others for text in differences(first, run, _GRID)}
    broken = [run for run in runs if run.status == "failed"]
    names = _arm_names([*(run for run, _ in evaluated), *broken])
    entrants: dict[tuple[Any, ...], Entrant] = {}
    spare = []
    for run, curve in evaluated:
        cell = (_variant(run), run.config.lr, run.config.seed)
        each = Entrant(run, curve, names[run.path])
        before = entrants.setdefault(cell, each)
        if before is each:
            continue
        if apart := differences(before.run, run):
            raise ComparisonError(
                f"{_short(before.run)} and {_short(run)} are one arm at one rate and seed, and "
                f"differ: {'; '.join(apart)} (`allow_difference` lets arms differ from each "
                "other, not one from itself: name one of the two)"
            )
        spare.append(each)
    ordered = sorted(entrants.values(), key=lambda e: (e.lr, e.seed, e.arm != BASELINE, e.arm))
    failed, left_out = [], []
    for run in broken:
        cell = (_variant(run), run.config.lr, run.config.seed)
        # A failure under other settings, or one that a later run has made good, says nothing about
        # the arm.
        if cell in entrants or differences(first, run, {*allow, *_GRID}):
            left_out.append(str(run.path))
        else:
            error = str(run.summary.get("error", "unknown"))
            failed.append(
                Failure(str(run.path), names[run.path], run.config.lr, run.config.seed, error)
            )
    return Field(ordered, failed, waiting, spare, left_out, sorted(insisted))


def _check_allowed(allow: Collection[str], runs: Sequence[RunRecord]) -> None:
    known = {key for run in runs for key in type(run.config).model_fields} | {*SHARED, _ORDER}
    for key in allow:
        if key in _GRID:
            raise ConfigError(
                f"`allow_difference` {key}: rates and seeds are compared each with itself, and "
                "rates best with best"
            )
        if key not in known:
            raise ConfigError(
                f"`allow_difference` {key}: no such setting; also {', '.join([*SHARED, _ORDER])}"
            )


def _short(run: RunRecord) -> str:
    return "/".join(run.path.parts[-2:])


def _dump(run: RunRecord, keep: Callable[[str], bool]) -> str:
    return json.dumps(
        {key: value for key, value in run.config.model_dump(mode="json").items() if keep(key)},
        sort_keys=True,
    )


def _setting(run: RunRecord) -> str:
    """Return the settings that the runs of one comparison must have in common, as one text."""
    return _dump(run, lambda key: key not in ARM_KEYS | PLACE_KEYS | _GRID)


def _variant(run: RunRecord) -> str:
    """Return the arm with the settings that belong to it; the baseline has none."""
    if run.config.arm == BASELINE:
        return BASELINE
    return f"{run.config.arm} {_dump(run, lambda key: key in ARM_KEYS - {'arm', 'baseline'})}"


def _arm_names(runs: Sequence[RunRecord]) -> dict[Path, str]:
    """Name each run's arm.

    If several variants of an arm take part, the name includes the settings that distinguish it.
    """
    variants: dict[str, dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        variants[run.config.arm][_variant(run)].append(run)
    names = {}
    for arm, of_arm in variants.items():
        settings = [members[0].config.model_dump(mode="json") for members in of_arm.values()]
        apart = sorted(
            key
            for key in ARM_KEYS - {"arm", "baseline"}
            if any(each[key] != settings[0][key] for each in settings)
        )
        for mine, members in zip(settings, of_arm.values(), strict=True):
            label = ", ".join(f"{key} {mine[key]}" for key in apart)
            names.update(
                dict.fromkeys((run.path for run in members), f"{arm} ({label})" if label else arm)
            )
    return names


@dataclass(frozen=True)
class Pair:
    """An arm's run with its reference's, both cut at the last step that they share."""

    arm: Entrant
    reference: Entrant
    curve: Curve
    reference_curve: Curve

    @property
    def lr(self) -> float:
        return self.arm.lr

    @property
    def seed(self) -> int:
        return self.arm.seed

    @property
    def end(self) -> int:
        return self.curve.end

    @property
    def finished(self) -> bool:
        return self.arm.finished and self.reference.finished

    @property
    def same_pictures(self) -> bool:
        """Whether both runs were evaluated on the same pictures."""
        one, other = (recorded(each.run, "dataset") for each in (self.arm, self.reference))
        return one == other

    @property
    def same_machine(self) -> bool:
        """Whether both runs had the same device and number of threads, as far as recorded."""
        one, other = (each.run.environment for each in (self.arm, self.reference))
        return all(one.get(key) == other.get(key) for key in ("device_name", "threads"))

    @property
    def uneven(self) -> list[str]:
        """Describe, in sentences, events in which the trainings of the two runs differed."""
        runs = self.arm.run, self.reference.run
        notes = []
        parts = [run.summary.get("micro_batch") for run in runs]
        if self.finished and parts[0] != parts[1]:
            named = " and ".join(
                f"{_short(r)} {f'in parts of {n}' if n else 'whole'}"
                for r, n in zip(runs, parts, strict=True)
            )
            notes.append(
                f"Memory did not hold the same batches: {named}, and BatchNorm saw the parts."
            )
        alone = [run.summary.get("on_features", False) for run in runs]
        if self.finished and alone[0] != alone[1]:
            quick, slow = runs if alone[0] else runs[::-1]
            notes.append(
                f"{_short(quick)} passed its pictures through the frozen backbone once, "
                f"{_short(slow)} at every step, because its sites learn: seconds and speeds tell "
                "of that too."
            )
        return notes

    def proof(self) -> dict[str, str | None]:
        """Return hashes of what both runs have recorded and share.

        Order and augmentation are represented by the digests of their first epoch.
        """

        def shared(one: str | None, other: str | None) -> str | None:
            return one if one == other else None

        hashes = {
            key: shared(recorded(self.arm.run, key), recorded(self.reference.run, key))
            for key in SHARED
        }
        first = [(_epochs(each.run) or [{}])[0] for each in (self.arm, self.reference)]
        hashes["order"] = shared(*(epoch.get("order") for epoch in first))
        hashes["augmentation"] = shared(*(epoch.get("first_batch") for epoch in first))
        return hashes


def match(
    entrants: Sequence[Entrant],
    arm: str,
    reference: str,
    allow: Collection[str] = (),
    spare: Sequence[Entrant] = (),
) -> list[Pair]:
    """Pair every run of ``arm`` with the run of ``reference`` of the same rate and seed.

    If its own study has such a run, that one is taken.

    Args:
        entrants: the runs that take part.
        arm: name of the arm.
        reference: name of the arm to compare with.
        allow: as for ``gather``.
        spare: runs of cells that others represent, which may still be the reference of their own
            study.

    Raises:
        ComparisonError: two runs of one rate and seed were not trained on the same; the message
            names the differences.
    """
    candidates: dict[tuple[float, int], list[Entrant]] = defaultdict(list)
    for each in [*entrants, *spare]:
        if each.arm == reference:
            candidates[each.lr, each.seed].append(each)
    pairs = []
    for each in entrants:
        if each.arm != arm or not (possible := candidates[each.lr, each.seed]):
            continue
        home = each.run.path.parent.resolve()
        chosen = next(
            (other for other in possible if other.run.path.parent.resolve() == home), possible[0]
        )
        if apart := differences(each.run, chosen.run, allow):
            raise ComparisonError(
                f"{_short(each.run)} and {_short(chosen.run)} differ in more than the arm: "
                f"{'; '.join(apart)} (insist with `allow_difference=KEY`)"
            )
        end = common_steps(each.curve.steps, chosen.curve.steps)
        pairs.append(Pair(each, chosen, each.curve.until(end), chosen.curve.until(end)))
    return pairs


def differences(a: RunRecord, b: RunRecord, allow: Collection[str] = ()) -> list[str]:
    """Describe everything in which two runs differ, apart from the arm and allowed differences.

    Empty for a pair.
    """
    ours, theirs = a.config.model_dump(mode="json"), b.config.model_dump(mode="json")
    unlike = [key for key in ours if key not in ARM_KEYS | PLACE_KEYS and ours[key] != theirs[key]]
    apart = [f"{key} {ours[key]} and {theirs[key]}" for key in unlike if key not in allow]
    mixed = [
        key
        for key in SHARED
        if (one := recorded(a, key)) and (other := recorded(b, key)) and one != other
    ]
    # Consequences of an allowed difference are not reported again: another seed has another head,
    # other random weights and another order.
    free = set(allow) & {*unlike, *mixed}
    follows = (_HEAD_FOLLOWS if free & _HEAD_FOLLOWS else set()) and {"head_init"}
    if "seed" in free and not a.config.pretrained:
        follows = follows | {"weights"}
    for key in mixed:
        if key not in allow and key not in follows:
            one, other = (str(recorded(run, key))[:12] for run in (a, b))
            apart.append(f"{SHARED[key]} ({one} and {other})")
    if _ORDER not in allow and not free & _ORDER_FOLLOWS:
        pairs = enumerate(zip(_epochs(a), _epochs(b), strict=False), start=1)
        apart += [
            f"order or augmentation in epoch {n}" for n, (mine, yours) in pairs if mine != yours
        ][:1]
    return apart


def recorded(run: RunRecord, key: str) -> str | None:
    """Return what a run has recorded for a key of ``SHARED``."""
    value = run.summary.get("pairing", {}).get(key)
    # A run that still trains has no summary, but its dataset is known.
    return run.dataset if value is None and key == "dataset" else value


def _epochs(run: RunRecord) -> list[dict[str, Any]]:
    epochs: list[dict[str, Any]] = run.summary.get("pairing", {}).get("epochs", [])
    return epochs
