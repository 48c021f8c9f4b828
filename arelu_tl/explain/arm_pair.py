"""Find the partner of a run: the run of the unmodified arm with the same learning rate and seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arelu_tl.activation.catalogue import SURGERY_ARMS
from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.errors import DataError
from arelu_tl.models.export_folder import is_export
from arelu_tl.records import runs
from arelu_tl.surgery.convert import RECALIBRATED

# The partner of a baseline run is the first of these arms that the study has.
_PARTNERS = ("arelu", *(arm for arm in SURGERY_ARMS if arm != "arelu"), RECALIBRATED)


@dataclass(frozen=True)
class ArmPair:
    """One or two runs to show side by side.

    Attributes:
        runs: the unmodified arm's first; a single run where it has no partner.
        chosen: a sentence about how they were chosen; "" where there was no choice.
    """

    runs: list[runs.RunRecord]
    chosen: str


def find_pair(path: Path) -> ArmPair:
    """Find the run at ``path`` and its partner in the same study.

    Of a study, the run is chosen by: not the baseline, has a partner, arm arelu, best validation
    accuracy; in this order.

    Raises:
        DataError: there is neither a run nor a study with a trained run at ``path``.
        ArtefactError: a file of theirs is corrupt.
    """
    if runs.is_run(path):
        return _with_partner(runs.load_run(path), "")
    if is_export(path):
        raise DataError(
            f"{path} is an export, whose sites are constants: name the run that it was made of"
        )
    if not runs.is_study(path):
        raise DataError(f"{path} is neither a run folder nor a study")
    trained = [run for run in runs.load_study(path).runs if _has_weights(run.path)]
    if not trained:
        raise DataError(f"{path}: no run of this study has weights yet")
    best = max(trained, key=lambda run: (_worth(run), run.summary.get("best_top1") or 0.0))
    return _with_partner(best, f"of {len(trained)} runs" if len(trained) > 2 else "")


def find_partner(run: runs.RunRecord, *, with_weights: bool = False) -> runs.RunRecord | None:
    """Find the run of the other arm with the same learning rate and seed in the folder of ``run``.

    It is found by the name that training gave it. The partner of an unmodified run is the AReLU
    run, or else the first of the other arms. If ``run`` is a link, its target's folder is searched
    too.

    Args:
        run: the run whose partner is wanted.
        with_weights: ignore runs that have no best checkpoint yet.

    Raises:
        ArtefactError: a file of the partner's is corrupt.
    """
    path = _partner(run, with_weights=with_weights)
    return None if path is None else runs.load_run(path)


def _partner(run: runs.RunRecord, *, with_weights: bool) -> Path | None:
    arms = _PARTNERS if run.config.arm == BASELINE else (BASELINE,)
    beside = (run.path.parent, run.path.resolve().parent)
    places = (
        folder / runs.run_name(arm, run.config.lr, run.config.seed)
        for folder in beside
        for arm in arms
    )
    there = _has_weights if with_weights else runs.is_run
    return next((place for place in places if there(place)), None)


def _has_weights(run: Path) -> bool:
    return runs.is_run(run) and (run / runs.BEST).is_file()


def _worth(run: runs.RunRecord) -> tuple[bool, bool, bool]:
    arm = run.config.arm
    return arm != BASELINE, _partner(run, with_weights=True) is not None, arm == "arelu"


def _with_partner(run: runs.RunRecord, chosen: str) -> ArmPair:
    partner = find_partner(run, with_weights=True)
    if partner is None:
        missing = "run of another arm" if run.config.arm == BASELINE else f"{BASELINE} run"
        reason = (
            f"no {missing} with the same rate and seed beside it: {run.path.name} is shown alone"
        )
        return ArmPair([run], reason)
    pair = sorted((run, partner), key=lambda each: each.config.arm != BASELINE)
    return ArmPair(pair, chosen and f"{chosen}: {' beside '.join(each.path.name for each in pair)}")
