"""Frozen groups of settings from a configuration; each is passed to the function that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Relative change of a pretrained network's outputs that calibrated surgery may cause. Chosen on the
# demo's backbone: ``benchmarks/drift_budget.py``.
DRIFT_BUDGET = 1.0

Layout = Literal["auto", "flat", "split"]


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """How a folder of pictures is read; see the options of the same names.

    Attributes:
        train_split: name of the training folder; if it exists the layout is "split", unless that is
            ambiguous.
        val_split: name of the validation folder; None for val, valid or validation.
        layout: "flat" (ROOT/CLASS/*), "split" (ROOT/{train,val}/CLASS/*), or "auto": detected, and
            refused if ambiguous.
        val_fraction: share of each class held out if the folder has no validation pictures, 0..1.
        split_seed: seed of that split.
        on_bad_image: "error" refuses a folder with an undecodable picture, "skip" leaves it out and
            records it.
        allow_duplicates: whether one picture may be in several splits; our own split then keeps
            together only copies with the same bytes and class.
        follow_links: whether links out of the folder are followed and circular links skipped;
            otherwise both are refused.
    """

    train_split: str = "train"
    val_split: str | None = None
    layout: Layout = "auto"
    val_fraction: float = 0.2
    split_seed: int = 0
    on_bad_image: Literal["error", "skip"] = "error"
    allow_duplicates: bool = False
    follow_links: bool = False


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How training pictures are augmented: arguments of timm's ``create_transform``.

    Attributes:
        no_aug: no augmentation: preprocess them like validation pictures.
        scale: smallest and largest share of the picture's area that a random crop keeps.
        hflip: probability of a horizontal flip.
        color_jitter: strength of colour jitter.
        auto_augment: timm's AutoAugment policy, None for none.
        re_prob: probability of random erasing.
    """

    no_aug: bool = False
    scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5
    color_jitter: float = 0.4
    auto_augment: str | None = None
    re_prob: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SurgerySettings:
    """How a model's ReLUs are replaced; ``surgery.convert.convert`` describes each setting."""

    arm: str = "arelu"
    init: str = "calibrated"
    alpha: float | None = None
    beta: float | None = None
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    granularity: str = "site"
    share_sites: bool = False
    batchnorm: str = "corrected"
    drift_budget: float | None = DRIFT_BUDGET
    inplace: bool = True


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """timm's optimiser, its learning rates and its weight decay.

    Attributes:
        opt: timm's name of the optimiser.
        lr: the backbone's learning rate.
        head_lr, arelu_lr, norm_lr: learning rates of the classifier, of the site parameters, and
            of the weights of normalisation layers; None for ``lr``.
        weight_decay: weight decay; biases, norms and site parameters never decay.
        momentum: momentum, for optimisers that have it.
    """

    opt: str = "adamw"
    lr: float = 1e-4
    head_lr: float | None = None
    arelu_lr: float | None = None
    norm_lr: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9
