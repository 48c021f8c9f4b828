"""Gradients by depth of an arm and the unmodified backbone, in a new training or a trained run."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import ArtefactError, ConfigError, DataError
from arelu_tl.experiment.build import build_training, make_run_batches
from arelu_tl.experiment.choices import choose_start
from arelu_tl.experiment.finetune import absolute
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.pictures import scanned_pictures
from arelu_tl.experiment.start import Start, build_start, doubt_pictures
from arelu_tl.explain.arm_pair import find_partner
from arelu_tl.explain.gradients.measure import measure_gradients
from arelu_tl.explain.gradients.report import THRESHOLD, GradientPoint, GradientReport
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.storage import read_json
from arelu_tl.records.weights import load_weights, require_finite
from arelu_tl.surgery.sites import find_sites
from arelu_tl.training.checkpoint import list_checkpoints, load_checkpoint_model
from arelu_tl.training.device import choose_device
from arelu_tl.training.fit import SilentJournal, fit

STEPS, BATCHES = 24, 4
# Number of points along training, in addition to the start.
_POINTS = 4


class _Arm:
    """An arm's model at the start of training, and the first batches, on which it is measured."""

    def __init__(
        self,
        config: FinetuneConfig,
        folder: PictureFolder,
        device: torch.device,
        batches: int,
        threshold: float,
        *,
        trains: bool = False,
    ) -> None:
        if trains:

            def build(own: FinetuneConfig) -> Start:
                unprobed = own.model_copy(update={"head_init": "random"})
                return build_start(unprobed, folder, device)

            self.start, choices, _ = choose_start(config, folder, device, build)
            self.config = self.start.config.model_copy(update=choices.settings())
        else:
            self.start = build_start(config, folder, device)
            self.config = self.start.config
        self.backbone = self.start.backbone
        self.folder, self.device, self.threshold = folder, device, threshold
        self.model = self.backbone.model
        self.training = build_training(self.config, folder, self.backbone, device)
        self.settings = self.training.settings
        if self.start.surgery is not None:
            self.sites = [planned.site for planned in self.start.surgery.sites]
        else:
            self.sites = find_sites(self.model, share=config.share_sites)
        train, _ = make_run_batches(
            self.config.model_copy(update={"workers": 0}), folder, self.backbone, device
        )
        self.batches = list(islice(train.epoch(), batches))

    def measure(self, step: int, what: str) -> GradientPoint:
        """Measure the gradients of the model's present weights; ``what`` names them."""
        sites, weights = measure_gradients(
            self.model,
            self.sites,
            self.batches,
            self.settings,
            self.device,
            threshold=self.threshold,
        )
        return GradientPoint(self.config.arm, step, what, sites, weights)


class _Measuring(SilentJournal):
    """A journal that measures gradients after some of the steps."""

    def __init__(self, arm: _Arm, steps: list[int], observer: Observer) -> None:
        self.points = [arm.measure(0, "start")]
        self._arm, self._steps, self._observer = arm, steps, observer

    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        self._observer.progress(self._arm.config.arm, step, loss, top1, images_per_second)
        if step in self._steps:
            self.points.append(self._arm.measure(step, "training"))

    def note(self, text: str) -> None:
        self._observer.note(text)


def gradients_of_training(
    config: FinetuneConfig,
    *,
    steps: int = STEPS,
    batches: int = BATCHES,
    threshold: float = THRESHOLD,
    observer: Observer | None = None,
) -> GradientReport:
    """Measure both arms at the start and during the first ``steps`` optimiser steps of training.

    Args:
        config: its arm and the unmodified backbone are trained as ``finetune`` would, with the same
            head, order and augmentation.
        batches: number of training batches to measure on, the same for both arms and all points.
        threshold: see ``SiteGradient``.

    Raises:
        ConfigError, DataError, BackboneError, SurgeryError: as ``finetune``.
        NonFiniteError: the training or a gradient became NaN or infinite.
    """
    observer = observer or Observer()
    _require_pair(config.arm)
    config = absolute(config)
    device = choose_device(config.device)
    points: list[GradientPoint] = []
    with scanned_pictures(config, observer) as folder:
        for arm in (BASELINE, config.arm):
            made = _Arm(_with_arm(config, arm), folder, device, batches, threshold, trains=True)
            points += _train(made, steps, observer)
    return _report(made, points)


def _train(arm: _Arm, steps: int, observer: Observer) -> list[GradientPoint]:
    config = arm.config
    training = arm.training
    steps = min(steps, training.steps)
    observer.run_started(config.arm, steps, config.epochs, arm.backbone.weights, arm.start.surgery)
    points = sorted({-(-steps * n // _POINTS) for n in range(1, _POINTS + 1)})
    journal = _Measuring(arm, points, observer)
    settings = replace(training.settings, max_steps=steps, save_epochs=False)
    fit(
        training.model, training.train, None, training.optimizer, training.schedule, settings,
        device=arm.device, journal=journal,
    )  # fmt: skip
    return journal.points


def gradients_of_run(
    path: Path,
    data: Path | None = None,
    *,
    batches: int = BATCHES,
    threshold: float = THRESHOLD,
    device: str | None = None,
    observer: Observer | None = None,
) -> GradientReport:
    """Measure a trained pair: both arms at their rebuilt start, and at each saved state.

    Saved states are the checkpoints and the best weights.

    Args:
        path: a run, whose partner with the same rate and seed is searched beside it, or a study of
            one such pair. Without a partner the other arm is measured only at its start.
        data: the pictures, if they have moved. Other pictures with the same classes can be used;
            the start is then calibrated on them.
        batches, threshold: see ``gradients_of_training``.
        device: device to use; None for the run's own.

    Raises:
        DataError: there is no pair at ``path``, or its pictures are gone or differ.
        ArtefactError: files of a run are damaged.
        NonFiniteError: a gradient is NaN or infinite.
    """
    observer = observer or Observer()
    pair = _pair(path)
    config = next(run for run in pair.values() if run is not None).config
    root = data or config.data
    if root is None or not root.is_dir():
        raise DataError(
            f"{root}: the pictures of {path} are not there: say where they are (explain gradients "
            "RUN DATA)"
        )
    place = {"data": root.resolve(), "device": device or config.device}
    config = config.model_copy(update=place)
    chosen = choose_device(config.device)
    points: list[GradientPoint] = []
    with scanned_pictures(config, observer) as folder:
        for arm, run in pair.items():
            if run is None:
                observer.note(
                    f"no {arm} run of the same rate and seed beside it: that arm is measured at "
                    "its start alone"
                )
            else:
                _check_pictures(run, folder, given=data is not None, observer=observer)
            own = (
                _with_arm(config, arm)
                if run is None
                else run.settled_config.model_copy(update=place)
            )
            made = _Arm(own, folder, chosen, batches, threshold)
            points += _along(made, run, observer)
    return _report(made, points)


def _pair(path: Path) -> dict[str, runs.RunRecord | None]:
    """Return the run of the unmodified arm, then that of the other; None if not trained."""
    asked = runs.load_run(path) if runs.is_run(path) else _only_swapped(path)
    partner = find_partner(asked)
    if asked.config.arm == BASELINE:
        return {BASELINE: asked, "arelu" if partner is None else partner.config.arm: partner}
    return {BASELINE: partner, asked.config.arm: asked}


def _only_swapped(study: Path) -> runs.RunRecord:
    swapped = [run for run in runs.find_runs(study) if run.config.arm != BASELINE]
    if len(swapped) != 1:
        names = ", ".join(run.path.name for run in swapped) or "none but the unmodified backbone's"
        raise DataError(
            f"{study} holds {len(swapped)} runs of a swapped arm: name one of its runs ({names})"
        )
    return swapped[0]


def _check_pictures(
    run: runs.RunRecord, folder: PictureFolder, *, given: bool, observer: Observer
) -> None:
    known = run.path.resolve().parent / runs.DATASET
    classes = (read_json(known) if known.is_file() else {}).get("classes", folder.classes)
    if list(classes) != list(folder.classes):
        raise DataError(
            f"{folder.root}: its classes are not those that {run.path} was trained to tell apart"
        )
    if doubt := doubt_pictures(run, folder):
        if not given:
            raise DataError(f"{folder.root}: {doubt}; name a folder to use others")
        observer.note(
            f"{folder.root}: {doubt}; the start may be calibrated on other pictures than it was"
        )


def _along(arm: _Arm, run: runs.RunRecord | None, observer: Observer) -> list[GradientPoint]:
    """Measure the start, and every state of ``run`` whose weights are saved."""
    states = [] if run is None else _states(run)
    observer.run_started(
        arm.config.arm, len(states) + 1, 1, arm.backbone.weights, arm.start.surgery
    )
    if run is not None and not arm.start.is_of(run):
        observer.note(
            f"{run.path.name} started from another head than can be rebuilt here (other classes, "
            "or another torch)"
        )
    points = [arm.measure(0, "start")]
    for number, (step, what, weights) in enumerate(states, start=1):
        require_finite(weights, f"{arm.config.arm}: {what}", arm.model.state_dict)
        try:
            arm.model.load_state_dict(weights)
        except RuntimeError as error:
            message = " ".join(str(error).split())[:200]
            raise ArtefactError(
                f"{arm.config.arm}: {what} does not fit the model of its configuration: {message}"
            ) from None
        points.append(arm.measure(step, what))
        observer.progress(arm.config.arm, number, 0.0, 0.0, 0.0)
    return points


def _states(run: runs.RunRecord) -> list[tuple[int, str, dict[str, Tensor]]]:
    """Return (step, name, weights) of a run's saved states, in order of steps.

    If the best weights and a checkpoint are of the same step, only the checkpoint is returned.
    """
    found: dict[int, tuple[str, dict[str, Tensor]]] = {}
    if (run.path / runs.BEST).is_file():
        weights, card = load_weights(run.path / runs.BEST)
        step = (card or {}).get("step")
        # If the best step is 0, it is the start, which is measured anyway.
        if isinstance(step, int) and step:
            found[step] = "best", weights
    for _, checkpoint in list_checkpoints(run.path / runs.CHECKPOINTS):
        weights, step = load_checkpoint_model(checkpoint)
        found[step] = checkpoint.name, weights
    return [(step, *found[step]) for step in sorted(found)]


def _require_pair(arm: str) -> None:
    if arm == BASELINE:
        raise ConfigError(
            "arm relu is the unmodified backbone, beside which the other is measured: choose "
            "another `arm`"
        )


def _with_arm(config: FinetuneConfig, arm: str) -> FinetuneConfig:
    return config.model_copy(update={"arm": arm})


def _report(arm: _Arm, points: list[GradientPoint]) -> GradientReport:
    return GradientReport(
        model=arm.config.model,
        data=arm.folder.root.name,
        lr=arm.config.lr,
        seed=arm.config.seed,
        batch_size=arm.config.pictures_in_a_batch,
        batches=len(arm.batches),
        threshold=arm.threshold,
        points=points,
    )
