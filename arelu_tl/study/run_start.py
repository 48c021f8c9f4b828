"""Runs' models as they were before the first step: built again, since no checkpoint of the start is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from arelu_tl.errors import ArtefactError, DataError
from arelu_tl.records import runs
from arelu_tl.records.weights import load_weights
from arelu_tl.study.card import ModelCard
from arelu_tl.study.finetune import check_pictures
from arelu_tl.study.observer import Observer
from arelu_tl.study.pictures import scanned_pictures
from arelu_tl.study.run import prepare_model

Progress = Callable[[int, int], None]


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
    if first.config.data is None or not first.config.data.is_dir():
        raise DataError(f"{first.path}: its start is built from the pictures it was trained on, which are gone")
    with scanned_pictures(first.config, _Scan(progress)) as folder:
        check_pictures(first.path.resolve().parent, folder)
        for run in runs_of_a_study:
            # Nothing is trained here, and what is recomputed in a backward pass cannot be watched.
            config = run.config.model_copy(update={"grad_checkpointing": False})
            backbone, report, head = prepare_model(config, folder, torch.device("cpu"))
            if (then := run.summary.get("pairing", {}).get("head_init")) not in (None, head):
                raise ArtefactError(
                    f"{run.path}: its start cannot be built again (its head began as {then[:12]} and would now as {head[:12]}): "
                    "use the versions that environment.json tells"
                )
            card = ModelCard.from_json(load_weights(run.path / runs.BEST)[1], run.path / runs.BEST)
            sites = report.to_json()["sites"] if report is not None else []
            yield backbone.model.eval(), replace(card, sites=sites, step=0, top1=None, loss=None)
