"""Rebuild runs' models as they were before the first step; no checkpoint of the start is kept."""

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
from arelu_tl.experiment.probe import PROBED, prepare_probe
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
        config: the configuration it was built from, without compilation and gradient checkpointing:
            they change no result, but prevent hooks on the sites.
        backbone: its model is on the requested device.
        surgery: surgery report; None for the unmodified arm.
        head: digest of the new head, or ``PROBED``.
    """

    config: FinetuneConfig
    backbone: Backbone
    surgery: SurgeryReport | None
    head: str

    def is_of(self, run: runs.RunRecord) -> bool:
        """Return whether ``run`` began with this head; True if the run does not record it.

        Other classes or another torch version produce another head.
        """
        return run.summary.get("pairing", {}).get("head_init") in (None, self.head)


def build_start(config: FinetuneConfig, folder: PictureFolder, device: torch.device) -> Start:
    """Build an arm's start: pretrained weights, surgery, calibration, new head.

    Args:
        config: with its choices settled.

    Raises:
        BackboneError, SurgeryError: see ``prepare_model``.
    """
    # Hooks cannot observe a compiled model, or a forward pass repeated in the backward pass.
    config = config.model_copy(update={"compile": False, "grad_checkpointing": False})
    start = Start(config, *prepare_model(config, folder, device))
    if config.head_init == "random":
        return start
    probe = prepare_probe(config, folder, start.backbone, device)
    if probe is None:
        return start
    probe.head().install(start.backbone.model)
    return replace(start, head=PROBED)


def doubt_pictures(run: runs.RunRecord, folder: PictureFolder) -> str:
    """Return why the pictures or the split of ``folder`` may differ from those of ``run``.

    Returns:
        The reason; "" if they are the same.
    """
    if run.dataset == folder.fingerprint():
        return ""
    if run.dataset is None:
        return (
            f"no {runs.DATASET} beside {run.path} tells whether the pictures are those that it was "
            "trained on"
        )
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
    """Yield each run's (model in eval mode on the CPU, card) at step 0; see ``build_start``.

    The study's pictures are checked once for all of the runs, as before training.

    Args:
        progress: called with (pictures checked, pictures in total).

    Raises:
        DataError: the pictures are gone, or are not those that the runs were trained on.
        ArtefactError: a run's files are corrupt, or its start cannot be reproduced, because
            package versions have changed.
        BackboneError, SurgeryError: see ``prepare_model``.
    """
    first = runs_of_a_study[0]
    if first.config.data is None:
        raise DataError(
            f"{first.path}: its start is built from the pictures it was trained on, which are gone"
        )
    require_pictures(first.path.resolve().parent, first.config.data)
    with scanned_pictures(first.config, _Scan(progress)) as folder:
        if doubt := doubt_pictures(first, folder):
            raise DataError(f"{folder.root}: {doubt}")
        for run in runs_of_a_study:
            start = build_start(run.settled_config, folder, torch.device("cpu"))
            if not start.is_of(run):
                then = run.summary["pairing"]["head_init"]
                raise ArtefactError(
                    f"{run.path}: its start cannot be built again (its head began as {then[:12]} "
                    f"and would now as {start.head[:12]}): use the versions that environment.json "
                    "tells"
                )
            card = ModelCard.from_json(load_weights(run.path / runs.BEST)[1], run.path / runs.BEST)
            sites = start.surgery.to_json()["sites"] if start.surgery is not None else []
            yield (
                start.backbone.model.eval(),
                replace(card, sites=sites, step=0, top1=None, loss=None),
            )
