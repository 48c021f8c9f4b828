"""A run and the run that it is to be seen beside: the unmodified arm with the same rate and seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arelu_tl.activation.catalogue import SURGERY_ARMS
from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.errors import DataError
from arelu_tl.models.export_folder import is_export
from arelu_tl.records import runs
from arelu_tl.surgery.convert import RECALIBRATED

# In whose company a baseline is shown: the first of them that was trained beside it.
_PARTNERS = ("arelu", *(arm for arm in SURGERY_ARMS if arm != "arelu"), RECALIBRATED)


@dataclass(frozen=True)
class ArmPair:
    """Attributes:
    runs: the unmodified arm's first; one alone where it has no partner.
    chosen: how they were come by, in words; "" where there was nothing to choose.
    """

    runs: list[runs.RunRecord]
    chosen: str


def find_pair(path: Path) -> ArmPair:
    """The run at ``path`` and its partner beside it; of a study the AReLU run, else any, that validates best and has a partner.

    Raises:
        DataError: there is neither a run nor a study with a trained run at ``path``.
        ArtefactError: a file of theirs is corrupt.
    """
    if runs.is_run(path):
        return _with_partner(runs.load_run(path), "")
    if is_export(path):
        raise DataError(f"{path} is an export, whose sites are constants: name the run that it was made of")
    if not runs.is_study(path):
        raise DataError(f"{path} is neither a run folder nor a study")
    trained = [run for run in runs.load_study(path).runs if _has_weights(run.path)]
    if not trained:
        raise DataError(f"{path}: no run of this study has weights yet")
    best = max(trained, key=lambda run: (_worth(run), run.summary.get("best_top1") or 0.0))
    return _with_partner(best, f"of {len(trained)} runs" if len(trained) > 2 else "")


def find_partner(run: runs.RunRecord, *, with_weights: bool = False) -> runs.RunRecord | None:
    """The run of the other arm that lies beside ``run`` and has its rate and seed, under the name that training gave it.

    Of the unmodified arm it is the AReLU run, and where there is none the first of the other arms. Beside a link is also what
    lies beside its target.

    Args:
        with_weights: a run that has no best checkpoint yet is none.

    Raises:
        ArtefactError: a file of the partner's is corrupt.
    """
    path = _partner(run, with_weights=with_weights)
    return None if path is None else runs.load_run(path)


def _partner(run: runs.RunRecord, *, with_weights: bool) -> Path | None:
    arms = _PARTNERS if run.config.arm == BASELINE else (BASELINE,)
    beside = (run.path.parent, run.path.resolve().parent)
    places = (folder / runs.run_name(arm, run.config.lr, run.config.seed) for folder in beside for arm in arms)
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
        told = f"no {missing} with the same rate and seed beside it: {run.path.name} is shown alone"
        return ArmPair([run], told)
    pair = sorted((run, partner), key=lambda each: each.config.arm != BASELINE)
    return ArmPair(pair, chosen and f"{chosen}: {' beside '.join(each.path.name for each in pair)}")
