"""Runs' models as they were before the first step: built again, since no checkpoint of the start is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from arelu_tl.backbone.loading import Backbone
from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import ArtefactError, DataError
from arelu_tl.experiment.build import prepare_model
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.pictures import scanned_pictures
from arelu_tl.models.run_pictures import require_pictures
from arelu_tl.records import runs
from arelu_tl.records.card import ModelCard
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.weights import load_weights
from arelu_tl.surgery.convert import SurgeryReport

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Start:
    """An arm before its first step.

    Attributes:
        config: that it was built by: without what would hide its sites from who watches them, and changes no number.
        backbone: its model, on the device that was asked for.
        surgery: None for the unmodified arm.
        head: digest of the new head.
    """

    config: FinetuneConfig
    backbone: Backbone
    surgery: SurgeryReport | None
    head: str

    def is_of(self, run: runs.RunRecord) -> bool:
        """Whether ``run`` began with this head, as far as it tells; other classes or another torch make another one."""
        return run.summary.get("pairing", {}).get("head_init") in (None, self.head)


def build_start(config: FinetuneConfig, folder: PictureFolder, device: torch.device) -> Start:
    """Pretrained weights, surgery, calibration, new head.

    Raises:
        BackboneError, SurgeryError: see ``prepare_model``.
    """
    # What a compiled model runs, or one in its backward pass once more, cannot be watched.
    config = config.model_copy(update={"compile": False, "grad_checkpointing": False})
    return Start(config, *prepare_model(config, folder, device))


def doubt_pictures(run: runs.RunRecord, folder: PictureFolder) -> str:
    """Why ``folder`` may hold other pictures, or split them otherwise, than ``run`` was trained on; "" where it does not."""
    if run.dataset == folder.fingerprint():
        return ""
    if run.dataset is None:
        return f"no {runs.DATASET} beside {run.path} tells whether the pictures are those that it was trained on"
    return f"the pictures are not those that {run.path} was trained on"


class _Scan(Observer):
    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def checking_pictures(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


def load_starts(
    runs_of_a_study: Sequence[runs.RunRecord], progress: Progress | None = None
) -> Iterator[tuple[nn.Module, ModelCard]]:
    """Each run's (model in eval mode on the CPU, card) at step 0: pretrained weights, surgery, calibration, new head.

    The study's pictures are checked once for all of the runs, as before training.

    Args:
        progress: called with (pictures checked, pictures in all).

    Raises:
        DataError: the pictures are gone, or are not those that the runs were trained on.
        ArtefactError: a run's files are corrupt, or its start does not come out as it was: other versions than then.
        BackboneError, SurgeryError: see ``prepare_model``.
    """
    first = runs_of_a_study[0]
    if first.config.data is None:
        raise DataError(f"{first.path}: its start is built from the pictures it was trained on, which are gone")
    require_pictures(first.path.resolve().parent, first.config.data)
    with scanned_pictures(first.config, _Scan(progress)) as folder:
        if doubt := doubt_pictures(first, folder):
            raise DataError(f"{folder.root}: {doubt}")
        for run in runs_of_a_study:
            start = build_start(run.config, folder, torch.device("cpu"))
            if not start.is_of(run):
                then = run.summary["pairing"]["head_init"]
                raise ArtefactError(
                    f"{run.path}: its start cannot be built again (its head began as {then[:12]} and would now as "
                    f"{start.head[:12]}): use the versions that environment.json tells"
                )
            card = ModelCard.from_json(load_weights(run.path / runs.BEST)[1], run.path / runs.BEST)
            sites = start.surgery.to_json()["sites"] if start.surgery is not None else []
            yield start.backbone.model.eval(), replace(card, sites=sites, step=0, top1=None, loss=None)
