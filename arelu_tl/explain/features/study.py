"""Compare the arms on one picture: predictions, evidence for a class, and the maps at each site."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.errors import ArtefactError, ConfigError, DataError, NoSitesError, SurgeryError
from arelu_tl.experiment.start import Progress, load_starts
from arelu_tl.explain.arm_pair import find_pair
from arelu_tl.explain.features.maps import (
    Floats,
    Maps,
    SiteStatistics,
    as_maps,
    cut_out,
    grad_cam,
    map_size,
    measure,
    most_active,
)
from arelu_tl.models.load import load_model
from arelu_tl.records.card import ModelCard
from arelu_tl.records.runs import RunRecord
from arelu_tl.surgery.plan import PlannedSite, matching_sites
from arelu_tl.surgery.sites import Site, find_sites
from arelu_tl.surgery.watch import Passage, observe_sites

At = Literal["start", "best"]
# A page of more sites would be too long to read.
MOST_SITES = 12
_SPREAD = 3
# A map with fewer positions per side shows nothing.
_LEAST_SIDE = 3
_LISTED_CLASSES = 5


@dataclass(frozen=True)
class Evidence:
    """Where an arm finds evidence for a class; see ``grad_cam``.

    Attributes:
        label: the class.
        asked: whether the user asked for it; otherwise it is the arm's prediction.
        shares: (h, w), over the positions of the last feature map, with sum 1; None where there is
            no such map or no evidence for the class.
        reason: why ``shares`` is None; "" where it is not.
    """

    label: str
    asked: bool
    shares: Floats | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as plain JSON values."""
        shares = (
            None
            if self.shares is None
            else [[round(float(v), 6) for v in row] for row in self.shares]
        )
        return {
            "class": self.label,
            "asked": self.asked,
            "shares": shares,
            "reason": self.reason or None,
        }


@dataclass(frozen=True)
class ArmAnswer:
    """An arm's prediction for the picture.

    Attributes:
        arm, run: the arm, and its run's folder.
        step, top1: of the weights: optimiser steps done, validation accuracy (None at the start).
        classes: their names.
        probabilities: of the classes, (classes,).
        evidence: for one of the classes.
    """

    arm: str
    run: Path
    step: int
    top1: float | None
    classes: Sequence[str] = field(repr=False)
    probabilities: NDArray[np.float64]
    evidence: Evidence

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return (class, probability) of the ``count`` most probable classes.

        Ties are in class order, as in ``predict``.
        """
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[i], float(self.probabilities[i])) for i in best]

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""
        return {
            "arm": self.arm,
            "run": str(self.run),
            "step": self.step,
            "top1": self.top1,
            "predictions": [
                {"label": label, "probability": p} for label, p in self.top(_LISTED_CLASSES)
            ],
            "evidence": self.evidence.to_json(),
        }


@dataclass(frozen=True)
class ShownSite:
    """A site that is drawn.

    Attributes:
        channels: indices of the shown channels, the most active first.
        maps: {arm: maps of these channels}; {} where the site has no maps.
        reason: why it has none; "" where it has maps.
    """

    channels: list[int]
    maps: dict[str, Maps] = field(repr=False)
    reason: str = ""


@dataclass(frozen=True)
class SiteFeatures:
    """One site and its statistics in each arm.

    Attributes:
        site: as surgery recorded it, or found it.
        number: its rank, from 1, among the sites that run.
        shape: of its input, for this picture.
        statistics: {arm: statistics}.
        shown: its maps; None where it was not chosen.
    """

    site: Site
    number: int
    shape: tuple[int, ...]
    statistics: dict[str, SiteStatistics]
    shown: ShownSite | None

    @property
    def title(self) -> str:
        """Its name, and the number of the call where several sites share a module."""
        several = self.site.kind == "shared" and self.site.owner is None and self.site.calls > 1
        return (
            f"{self.site.name} (call {self.site.call} of {self.site.calls})"
            if several
            else self.site.name
        )

    def to_json(self) -> dict[str, Any]:
        """Return the site as plain JSON values, without the maps."""
        return {
            "name": self.site.name,
            "number": self.number,
            "call": self.site.call,
            "calls": self.site.calls,
            "operator": self.site.operator,
            "cap": self.site.cap,
            "shape": list(self.shape),
            "shown": self.shown is not None,
            "channels": self.shown.channels if self.shown else [],
            "reason": (self.shown.reason or None) if self.shown else None,
            "arms": {arm: asdict(statistics) for arm, statistics in self.statistics.items()},
        }


@dataclass(frozen=True)
class FeatureReport:
    """The arms' answers to one picture, and their sites.

    Attributes:
        image: the picture's file.
        picture: as the models see it, uint8 (H, W, 3).
        at: "start" or "best".
        note: how the runs were chosen, or why there is only one; "" where there is nothing to say.
        answers: of each arm, the unmodified one first.
        sites: all that run, in the order of the forward pass.
    """

    image: Path
    picture: NDArray[np.uint8] = field(repr=False)
    at: At
    note: str
    answers: list[ArmAnswer]
    sites: list[SiteFeatures]

    @property
    def shown(self) -> list[tuple[SiteFeatures, ShownSite]]:
        """The sites that are drawn."""
        return [(site, site.shown) for site in self.sites if site.shown is not None]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values, without the maps."""
        return {
            "image": str(self.image),
            "input_size": list(self.picture.shape[:2]),
            "at": self.at,
            "note": self.note or None,
            "arms": [answer.to_json() for answer in self.answers],
            "sites": [site.to_json() for site in self.sites],
        }


def explain_features(
    path: Path,
    image: Path,
    *,
    site: Sequence[str] = (),
    channels: int = 4,
    label: str | None = None,
    at: At = "best",
    progress: Progress | None = None,
) -> FeatureReport:
    """Run the arms of a study, or a run and its partner, on ``image``, and record each site.

    Args:
        path: a study or a run folder; see ``find_pair``.
        image: the picture's file.
        site: globs over the names of the sites to show; if empty, three sites spread over the
            depth are shown.
        channels: number of channels to show per site; see ``most_active``.
        label: the class whose evidence is wanted; None for the prediction of each arm.
        at: "best": the best checkpoints; "start": both arms before the first step, see
            ``load_starts``.
        progress: see ``load_starts``.

    Raises:
        DataError: there is no run at ``path``, or no picture at ``image``.
        ConfigError: the class is unknown; too many sites.
        SurgeryError: a pattern matches no site.
        ArtefactError: the run is damaged, or a logit is NaN or infinite.
    """
    pair = find_pair(path)
    loaded = (
        load_starts(pair.runs, progress)
        if at == "start"
        else (load_model(run.path) for run in pair.runs)
    )
    nets = list(loaded)
    _require_same(pair.runs, [card for _, card in nets])
    card = nets[0][1]
    if label is not None and label not in card.classes:
        near = difflib.get_close_matches(label, card.classes, n=3, cutoff=0.4) or card.classes[:5]
        raise ConfigError(f"class {label!r}: no class of this run; there are {', '.join(near)}")
    prepare = Preprocessing(card.data_config)
    picture, x = _prepared(image, prepare)
    sites = _sites(nets)
    chosen, sizes = _choose(nets[0][0], sites, x, site)
    answers = []
    statistics: dict[int, dict[str, SiteStatistics]] = {}
    passages: dict[int, dict[str, Passage]] = {number: {} for number in chosen}
    shapes: dict[int, tuple[int, ...]] = {}
    for run, (model, its_card) in zip(pair.runs, nets, strict=True):

        def seen(number: int, passage: Passage, arm: str = its_card.arm) -> None:
            shapes[number] = tuple(passage.before.shape)
            statistics.setdefault(number, {})[arm] = measure(passage)
            if number in passages:
                passages[number][arm] = passage

        logits = _answer(model, sites, x, seen)
        if not torch.isfinite(logits).all():
            raise ArtefactError(
                f"{run.path}: its logits are not finite: the weights are damaged, or overflow"
            )
        probabilities = logits[0].double().softmax(0).numpy()
        index = int(np.argmax(probabilities)) if label is None else its_card.classes.index(label)
        evidence = _evidence(model, x, index, its_card.classes[index], asked=label is not None)
        answers.append(
            ArmAnswer(
                its_card.arm,
                run.path,
                its_card.step,
                its_card.top1,
                its_card.classes,
                probabilities,
                evidence,
            )
        )
    running = [number for number, site in enumerate(sites) if site.runs]
    features = []
    for place, number in enumerate(running, start=1):
        shown = (
            _show(sites[number], passages[number], sizes[number], channels)
            if number in passages
            else None
        )
        features.append(
            SiteFeatures(sites[number], place, shapes[number], statistics[number], shown)
        )
    return FeatureReport(image, picture, at, pair.chosen, answers, features)


def _require_same(found: Sequence[RunRecord], cards: Sequence[ModelCard]) -> None:
    for run, card in zip(found, cards, strict=True):
        for key in ("architecture", "classes", "data_config"):
            if getattr(card, key) != getattr(cards[0], key):
                raise DataError(
                    f"{found[0].path} and {run.path} differ in their {key}: "
                    "they cannot be shown beside each other"
                )


def _prepared(image: Path, prepare: Preprocessing) -> tuple[NDArray[np.uint8], Tensor]:
    try:
        opened = open_picture(image)
        return np.asarray(prepare.resized(opened)), torch.from_numpy(prepare(opened))[None]
    except UndecodableError as error:
        raise DataError(f"{image}: {error}") from None
    except OSError as error:
        raise DataError(f"{image}: {error.strerror or error}") from None


def _sites(nets: Sequence[tuple[nn.Module, ModelCard]]) -> list[Site]:
    """Return the sites recorded for the modified arm; for a single unmodified arm, find them.

    The sites have the same names in both arms.
    """
    model, card = nets[-1]
    if card.sites:
        try:
            return [PlannedSite.from_json(site).site for site in card.sites]
        except SurgeryError as error:
            raise ArtefactError(
                f"the record of the {card.arm} run's sites is damaged: {error}"
            ) from None
    sites = find_sites(model, torch.zeros(1, *card.data_config["input_size"], device="meta"))
    if not any(site.runs for site in sites):
        raise NoSitesError(f"{card.architecture} runs no ReLU: there is no site to show")
    return sites


def _answer(model: nn.Module, sites: Sequence[Site], x: Tensor, seen: Any) -> Tensor:
    logits: list[Tensor] = []
    with torch.no_grad():
        # Cloned, because the first operation may be in place.
        observe_sites(model, sites, lambda: logits.append(model(x.clone())), seen)
    return logits[0]


def _choose(
    model: nn.Module, sites: Sequence[Site], x: Tensor, patterns: Sequence[str]
) -> tuple[list[int], dict[int, tuple[int, int] | None]]:
    """Return the indices of the sites to show, and {index: map size} of all sites that run.

    The size is None where the channels are not maps.
    """
    sizes: dict[int, tuple[int, int] | None] = {}
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)

    def seen(number: int, passage: Passage) -> None:
        picture = (x.shape[2], x.shape[3])
        sizes[number] = map_size(passage.before.shape, sites[number].channel_dim, picture, prefix)

    _answer(model, sites, x, seen)
    if patterns:
        chosen = matching_sites("`site`", patterns, sites)
        if len(chosen) > MOST_SITES:
            raise ConfigError(
                f"`site` matches {len(chosen)} sites; a page holds {MOST_SITES}: "
                "narrow the patterns"
            )
        return chosen, sizes
    mapped = [n for n, size in sizes.items() if size is not None and min(size) >= _LEAST_SIDE]
    candidates = [n for n in mapped if sites[n].role == "activation"] or mapped or list(sizes)
    last = len(candidates) - 1
    return sorted(
        {candidates[round(last * part / (_SPREAD - 1))] for part in range(_SPREAD)}
    ), sizes


def _show(
    site: Site, passages: dict[str, Passage], size: tuple[int, int] | None, count: int
) -> ShownSite:
    if size is None:
        return ShownSite([], {}, "its channels are no maps over the picture")
    after = [as_maps(passage.after, site.channel_dim, size) for passage in passages.values()]
    channels = most_active(after, count)
    return ShownSite(
        channels,
        {arm: cut_out(each, channels, site.channel_dim, size) for arm, each in passages.items()},
    )


def _evidence(model: nn.Module, x: Tensor, index: int, label: str, *, asked: bool) -> Evidence:
    found = grad_cam(model, x, index)
    if found.map is None:
        return Evidence(label, asked, None, found.reason)
    total = float(found.map.sum())
    if not total > 0:
        return Evidence(label, asked, None, "no place speaks for it")
    return Evidence(label, asked, (found.map / total).float().numpy(), "")
