"""The configuration of a fine-tune: one flat model for command line, YAML files and run folders.

A field's description is the help text of the option of the same name (``batch_size`` is
``--batch-size``); its ``panel`` is the heading under which ``--help`` shows it. Option names follow
timm's train.py if it has such an option.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, overload

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from arelu_tl.errors import ConfigError
from arelu_tl.records.config_values import (
    Commas,
    Duration,
    FilePath,
    Float,
    FloatOrAuto,
    FolderName,
    Fraction,
    Int,
    Interval,
    IntOrAuto,
    ModelName,
    Size,
    option,
    require_distinct,
)
from arelu_tl.records.settings import (
    AugmentSettings,
    OptimizerSettings,
    ScanSettings,
    SurgerySettings,
)

# Controls that differ from another arm only in how they are trained, and that arm: the unmodified
# net with the head's rate of AReLU and AReLU with the unmodified net's; the unmodified net with
# frozen statistics; and with a rate of its own for the weights of its normalisation layers.
TRAINED_OTHERWISE = {
    "head-matched": "relu",
    "head-of-relu": "arelu",
    "stats-frozen": "relu",
    "norm-rate": "relu",
}
# The unmodified baseline, the arms of surgery and the controls above: the names of
# activation.SURGERY_ARMS and surgery.RECALIBRATED, which this layer cannot import; a test compares
# them. Only runs of ``reproduce`` can have the arm maxout.
Arm = Literal[
    "arelu", "relu", "recalibrated", "arelu-frozen", "leaky", "gain-only", "prelu",
    "head-matched", "head-of-relu", "stats-frozen", "norm-rate",
    "apl", "celu", "combine", "curvature", "elu", "gelu", "gelu-tanh", "hardswish", "leaky-relu",
    "maxout", "mish", "pau", "quick-gelu", "relu6", "rrelu", "selu", "sigmoid", "silu", "slaf",
    "softplus", "softsign", "tanh",
]  # fmt: skip
Init = Literal["auto", "calibrated", "paper", "near-relu"]
Granularity = Literal["site", "channel"]
BatchNorm = Literal["corrected", "reestimated", "kept"]

ARMS: tuple[str, ...] = get_args(Arm)


_WHERE = "Where and how long"


# Use libyaml if PyYAML was built with it: comparing hundreds of runs reads hundreds of files.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class FinetuneConfig(BaseModel):
    """All settings of ``arelu-tl finetune``: each field is one option and one YAML line."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_default=True, frozen=True
    )

    data: FilePath | None = option(
        None, "Folder of pictures: ROOT/{train,val}/CLASS/* or ROOT/CLASS/*.", "Data"
    )
    train_split: FolderName = option("train", "Name of the folder with training pictures.", "Data")
    val_split: FolderName | None = option(
        None,
        "Name of the folder with validation pictures; looks for val, valid, validation.",
        "Data",
    )
    layout: Literal["auto", "flat", "split"] = option(
        "auto",
        "split: ROOT/{train,val}/CLASS/*; flat: ROOT/CLASS/*, also where a class is called train; "
        "auto: what is there, unless it may be either.",
        "Data",
    )
    val_fraction: Float = option(
        0.2, "Share held out for validation when the folder is flat.", "Data", gt=0, lt=1
    )
    split_seed: Int = option(
        0, "Seed of that split; the same for every run of a study.", "Data", ge=0, lt=2**32
    )
    on_bad_image: Literal["error", "skip"] = option(
        "error",
        "A picture that cannot be decoded ends the command, or is named and left out of all arms.",
        "Data",
    )
    allow_duplicates: bool = option(
        False,
        "Let a picture, or what looks the same, stand in training and in validation; else such a "
        "folder is refused.",
        "Data",
    )
    follow_links: bool = option(
        False,
        "Follow links that lead out of the folder, and pass over those in a circle; else both are "
        "refused.",
        "Data",
    )
    workers: Int | None = option(
        None,
        "Processes that decode pictures; chosen from the machine when not given.",
        "Data",
        ge=0,
        short="-j",
    )

    cache: Literal["auto", "ram", "disk", "off"] = option(
        "auto",
        "Where pictures are kept once they are decoded and reduced: the user's cache folder, for "
        "later runs too (disk), memory (ram), or nowhere; auto: disk where there is room.",
        "Data",
    )
    cache_limit: Size = option(
        "16GB", "Most that is kept; more is decoded whenever it is needed. 500MB, 16GB.", "Data"
    )

    model: ModelName = option(
        "tf_efficientnet_lite0",
        "timm backbone: arch, arch.tag, hf-hub:USER/NAME or local-dir:PATH.",
        "Backbone",
    )
    pretrained: bool = option(True, "Start from pretrained weights.", "Backbone")
    pretrained_path: FilePath | None = option(
        None, "Weights from a file instead (safetensors or a checkpoint).", "Backbone"
    )
    img_size: Int | None = option(
        None,
        "Side of the input in pixels; the pretrained model's when not given.",
        "Backbone",
        ge=8,
    )
    drop: Fraction = option(0.0, "Dropout before the classifier.", "Backbone")
    drop_path: Fraction | None = option(
        None, "Stochastic depth; the model's own when not given.", "Backbone"
    )

    arm: Arm = option(
        "arelu",
        "What becomes of the ReLU sites: AReLU, a control (recalibrated keeps them; arelu-frozen, "
        "leaky, gain-only, prelu) or a rival. The controls head-matched, stats-frozen and "
        "norm-rate train the unmodified net otherwise, head-of-relu AReLU.",
        "Surgery",
    )
    controls: bool = option(
        False,
        "Also train the controls that show where a gain comes from: a fixed slope, the gain alone, "
        "what alpha and beta learn, the head's rate, BatchNorm's statistics, or that a few "
        "parameters of each layer have a rate of their own.",
        "Surgery",
    )
    baseline: bool = option(
        True, "Also train the unmodified backbone (arm relu) and compare.", "Surgery"
    )
    init: Init = option(
        "auto",
        "How AReLU starts: normalised and graded by depth (calibrated), as in the paper, or almost "
        "ReLU; auto: calibrated or almost ReLU, what a few steps of each suggest.",
        "Surgery",
    )
    alpha: Float | None = option(
        None,
        "Initial alpha of every site (of the last one, with calibrated).",
        "Surgery",
        ge=0.01,
        le=0.99,
    )
    beta: Float | None = option(None, "Initial beta of every site.", "Surgery", ge=-20, le=20)
    include: list[str] = option(
        [], "Replace only sites whose name matches one of these globs.", "Surgery"
    )
    exclude: list[str] = option([], "Leave sites whose name matches one of these globs.", "Surgery")
    granularity: Granularity = option(
        "site", "One alpha and beta a site, or a pair for each of its channels.", "Surgery"
    )
    share_sites: bool = option(
        False, "One AReLU for all calls of a ReLU module that runs at several sites.", "Surgery"
    )
    inplace: bool = option(
        True,
        "Where the ReLU overwrote its input, AReLU keeps only its output for the backward pass; "
        "off: a copy of the input as well, for more memory.",
        "Surgery",
    )
    batchnorm: BatchNorm = option(
        "corrected",
        "BatchNorm statistics with calibrated: moved by what surgery did to them, estimated anew "
        "from training pictures, or left alone.",
        "Surgery",
    )
    drift_budget: Float = option(
        1.0,
        "With calibrated: leaks as strong as keep the drift on training pictures within this; 0: "
        "alphas graded by depth, whatever the drift.",
        "Surgery",
        ge=0,
    )
    calibration_images: Int = option(
        256, "Training pictures that calibrate surgery and measure its drift.", "Surgery", ge=2
    )

    epochs: Int = option(10, "Passes over the training pictures.", "Training", ge=1)
    batch_size: IntOrAuto = option(
        32,
        "Pictures in a step, over all processes of torchrun; auto: the largest power of two that "
        "memory holds for every arm, up to 256 and an eighth of the training pictures.",
        "Training",
        short="-b",
    )
    micro_batch: Int | None = option(
        None,
        "Pictures at a time, the gradients added up over the batch (BatchNorm sees the parts); "
        "halved by itself where a GPU's memory runs out.",
        "Training",
        ge=1,
    )
    lr: Float = option(
        1e-4,
        "Learning rate of the backbone, and of what sites learn unless told otherwise.",
        "Training",
        gt=0,
    )
    head_init: Literal["probe", "random"] = option(
        "probe",
        "How the new classifier starts: as each arm's linear probe, trained on features of "
        "training pictures, or at random.",
        "Training",
    )
    head_lr: FloatOrAuto | None = option(
        "auto",
        "Learning rate of the new classifier; auto: lr if it starts as the probe, else each arm's "
        "is chosen by cross-validation on features of training pictures.",
        "Training",
    )
    arelu_lr: Float | None = option(
        None,
        "Learning rate of what sites learn: alpha and beta, prelu's slope; of the weights of "
        "normalisation layers in the control norm-rate.",
        "Training",
        gt=0,
    )
    opt: str = option("adamw", "timm optimiser.", "Training")
    momentum: Float = option(0.9, "Momentum, for optimisers that have it.", "Training", ge=0, lt=1)
    weight_decay: Float = option(
        0.05, "Weight decay; never on biases, norms, alpha and beta.", "Training", ge=0
    )
    sched: Literal["cosine", "tanh", "step", "poly", "none"] = option(
        "cosine", "Schedule of the learning rate, per step.", "Training"
    )
    warmup_epochs: Float = option(0.0, "Epochs of linear warm-up.", "Training", ge=0)
    min_lr: Float = option(0.0, "Learning rate at the schedule's end.", "Training", ge=0)
    smoothing: Float = option(0.0, "Label smoothing.", "Training", ge=0, lt=1)
    balance: bool = option(
        False,
        "Weigh the loss so that every class counts the same, however many pictures it has.",
        "Training",
    )
    clip_grad: Float | None = option(None, "Largest norm of the gradient.", "Training", gt=0)
    grad_accum_steps: Int = option(1, "Batches whose gradients make one step.", "Training", ge=1)
    freeze: Literal["none", "backbone"] = option(
        "none",
        "backbone: train only the classifier, alpha and beta; BatchNorm statistics stay. With "
        "--no-aug and nothing to learn at the sites, each picture passes the backbone once.",
        "Training",
    )
    bn_stats: Literal["auto", "batch", "frozen"] = option(
        "auto",
        "What BatchNorm normalises by in training: each batch's statistics, or, frozen, those of "
        "the pretrained weights, as in evaluation; auto: what a few steps of each suggest, arm by "
        "arm.",
        "Training",
    )
    sync_bn: bool = option(
        False,
        "Under torchrun, on GPUs: BatchNorm normalises by the whole batch, not by each process's "
        "slice.",
        "Training",
    )
    model_ema: bool = option(
        False, "Evaluate and keep a moving average of the weights.", "Training"
    )
    model_ema_decay: Float = option(0.998, "Decay of that average.", "Training", gt=0, lt=1)
    patience: Int | None = option(
        None,
        "Stop an arm after so many epochs without a better validation accuracy.",
        "Training",
        ge=1,
    )
    eval_every: Int | None = option(
        None, "Evaluate every so many steps too, not only at each epoch's end.", "Training", ge=1
    )
    amp: bool = option(False, "Mixed precision.", "Training")
    amp_dtype: Literal["bfloat16", "float16"] = option(
        "bfloat16", "Its type; float16 needs a GPU.", "Training"
    )
    channels_last: bool | None = option(
        None,
        "Lay maps out with their channels side by side; when not given, on the CPU and with --amp.",
        "Training",
    )
    compile: bool = option(
        False,
        "torch.compile the model; trains as without where that fails, all arms alike.",
        "Training",
    )
    grad_checkpointing: bool = option(
        False,
        "Compute activations again in the backward pass: less memory, more time, the same result.",
        "Training",
    )

    no_aug: bool = option(
        False, "No augmentation: train on what validation would see.", "Augmentation"
    )
    scale: tuple[float, float] = option(
        (0.35, 1.0),
        "Share of the picture's area that a random crop keeps, least and most.",
        "Augmentation",
    )
    hflip: Fraction = option(0.5, "Probability of a horizontal flip.", "Augmentation")
    color_jitter: Float = option(0.4, "Strength of colour jitter.", "Augmentation", ge=0)
    aa: str | None = option(None, "timm AutoAugment policy, as rand-m9-mstd0.5.", "Augmentation")
    reprob: Fraction = option(0.0, "Probability of random erasing.", "Augmentation")

    seed: Int = option(
        0, "Seed of head initialisation, order, augmentation and dropout.", "Run", ge=0, lt=2**32
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1, mps; the best there is when not given.", "Run"
    )
    output: FilePath = option(Path("runs"), "Folder that study folders are made in.", "Run")
    name: str | None = option(
        None,
        "Name of the study folder; numbered when taken.",
        "Run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    save_every: Interval = option(
        "10m", "Save the state after so many steps (500) or so much time (10m).", "Run"
    )
    save_epochs: bool = option(True, "Save it at each epoch's end too.", "Run")
    tensorboard: bool = option(False, "Also log to RUN/tensorboard for TensorBoard.", "Run")

    @property
    def net(self) -> str:
        """The arm whose net is trained: another one for a control that is trained otherwise."""
        return TRAINED_OTHERWISE.get(self.arm, self.arm)

    def arms_to_train(self) -> list[Arm]:
        """Return the arms of a study, the baseline first: the others are shown beside it."""
        baseline: list[Arm] = ["relu"] if self.baseline else []
        return list(dict.fromkeys([*baseline, self.arm, *self.control_arms()]))

    def control_arms(self) -> list[Arm]:
        """Return the controls of ``controls``, without those that these settings leave no role."""
        if not self.controls:
            return []
        learns = self.freeze == "none"
        head_differs = learns and self.head_lr == "auto" and self.head_init == "random"
        has_role: dict[Arm, bool] = {
            "arelu-frozen": True,
            "leaky": True,
            "gain-only": True,
            "recalibrated": True,
            "head-matched": head_differs,
            "head-of-relu": head_differs,
            "stats-frozen": learns and self.bn_stats != "frozen",
            "norm-rate": self.arelu_lr is not None,
        }
        return [arm for arm, needed in has_role.items() if needed]

    def learning_rates(self) -> list[float]:
        """Return the learning rates that training will use."""
        return [self.lr]

    def scan(self) -> ScanSettings:
        """Return how the folder of pictures is read."""
        return ScanSettings(
            train_split=self.train_split,
            val_split=self.val_split,
            layout=self.layout,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            on_bad_image=self.on_bad_image,
            allow_duplicates=self.allow_duplicates,
            follow_links=self.follow_links,
        )

    def augmentation(self) -> AugmentSettings:
        """Return how training pictures are augmented."""
        return AugmentSettings(
            no_aug=self.no_aug,
            scale=self.scale,
            hflip=self.hflip,
            color_jitter=self.color_jitter,
            auto_augment=self.aa,
            re_prob=self.reprob,
        )

    def surgery(self) -> SurgerySettings:
        """Return how the ReLU sites are replaced; a start that is not chosen yet is calibrated."""
        return SurgerySettings(
            arm=self.net,
            init="calibrated" if self.init == "auto" else self.init,
            alpha=self.alpha,
            beta=self.beta,
            include=self.include,
            exclude=self.exclude,
            granularity=self.granularity,
            share_sites=self.share_sites,
            batchnorm=self.batchnorm,
            drift_budget=self.drift_budget,
            inplace=self.inplace,
        )

    def optimizer(self) -> OptimizerSettings:
        """Return the optimiser, its learning rates and its weight decay.

        A rate that is not chosen yet is the backbone's.
        """
        return OptimizerSettings(
            opt=self.opt,
            lr=self.lr,
            head_lr=None if self.head_lr == "auto" else self.head_lr,
            arelu_lr=self.arelu_lr,
            norm_lr=self.arelu_lr if self.arm == "norm-rate" else None,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
        )

    @property
    def pictures_in_a_batch(self) -> int:
        """``batch_size`` as a number.

        Raises:
            ConfigError: it is "auto" and not determined yet; a study does so before its first run.
        """
        if self.batch_size == "auto":
            raise ConfigError("batch_size auto has not been settled yet: give a number")
        return self.batch_size

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale needs two numbers with 0 < least <= most <= 1")
        if self.layout == "flat" and (self.train_split != "train" or self.val_split is not None):
            raise ValueError("layout flat has no train_split and no val_split")
        if not self.pretrained and self.pretrained_path is not None:
            raise ValueError("pretrained_path contradicts pretrained: false")
        if self.min_lr > min(self.learning_rates()):
            raise ValueError("min_lr is larger than lr")
        if self.warmup_epochs > self.epochs:
            raise ValueError("warmup_epochs is longer than epochs")
        return self


class SweepConfig(FinetuneConfig):
    """All settings of ``arelu-tl sweep``: those of ``finetune``, and the grid; each cell is a run.

    Where and how long it trains (``WHERE_KEYS``) does not define a study: it may resume elsewhere.
    """

    arms: Annotated[list[Arm], Commas, Field(min_length=1)] = option(
        ["relu", "arelu"], "Arms, separated by commas.", "Grid"
    )
    lrs: Annotated[list[Annotated[Float, Field(gt=0)]], Commas, Field(min_length=1)] = option(
        [1e-4], "Learning rates, separated by commas.", "Grid"
    )
    seeds: Annotated[list[Annotated[Int, Field(ge=0, lt=2**32)]], Commas, Field(min_length=1)] = (
        option([0], "Seeds, separated by commas.", "Grid")
    )

    jobs: Int | None = option(
        None,
        "Runs trained at once, devices shared out; one when not given, with ray as many as there "
        "is room for.",
        _WHERE,
        ge=1,
    )
    launcher: Literal["local", "ray"] = option(
        "local", "Who trains: this machine, or a Ray cluster, one run a task.", _WHERE
    )
    ray_address: str | None = option(
        None, "Ray cluster to join; one is started on this machine when not given.", _WHERE
    )
    time_budget: Duration = option(
        None,
        "Begin no rate and seed whose arms cannot all be trained within this time: 90m, 2h, 1h30m.",
        _WHERE,
    )

    @model_validator(mode="after")
    def _cluster_only_with_ray(self) -> SweepConfig:
        if self.ray_address is not None and self.launcher != "ray":
            raise ValueError("ray_address needs launcher ray")
        return self

    @model_validator(mode="after")
    def _no_cell_twice(self) -> SweepConfig:
        require_distinct(self, GRID_KEYS)
        return self

    def arms_to_train(self) -> list[Arm]:
        """Return the arms of the grid."""
        return list(dict.fromkeys([*self.arms, *self.control_arms()]))

    def learning_rates(self) -> list[float]:
        """Return the learning rates of the grid."""
        return self.lrs

    def cells(self) -> list[FinetuneConfig]:
        """Return a configuration for each run, ordered by seed, rate and arm.

        The arms to be compared thus follow each other.
        """
        shared = self.model_dump(exclude={*GRID_KEYS, *WHERE_KEYS, *_CELL_KEYS})
        return [
            FinetuneConfig(**shared, arm=arm, lr=lr, seed=seed, baseline=False)
            for seed in self.seeds
            for lr in self.lrs
            for arm in self.arms_to_train()
        ]


GRID_KEYS = ("arms", "lrs", "seeds")
WHERE_KEYS = ("jobs", "launcher", "ray_address", "time_budget")
# Settings that a sweep's grid determines for each of its runs.
_CELL_KEYS = frozenset({"arm", "lr", "seed", "baseline", "controls"})

# Settings that may differ between the two runs of a pair without making their comparison unfair:
# the arm and its parameters (surgery), and where and how fast the computation happens.
ARM_KEYS = frozenset(
    {
        "arm",
        "baseline",
        "controls",
        "init",
        "alpha",
        "beta",
        "include",
        "exclude",
        "arelu_lr",
        "calibration_images",
    }
    | {"granularity", "share_sites", "batchnorm", "drift_budget", "inplace"}
)
PLACE_KEYS = frozenset(
    {
        "data",
        "workers",
        "cache",
        "cache_limit",
        "output",
        "name",
        "pretrained_path",
        "save_every",
        "save_epochs",
    }
    | {"tensorboard"}
)


_Model = TypeVar("_Model", bound=BaseModel)


@overload
def check_config(values: Mapping[str, Any]) -> FinetuneConfig: ...
@overload
def check_config(values: Mapping[str, Any], model: type[_Model]) -> _Model: ...
def check_config(values: Mapping[str, Any], model: type[BaseModel] = FinetuneConfig) -> BaseModel:
    """Validate raw values; all errors are reported, in one line.

    Raises:
        ConfigError: an unknown key (with the most similar known one), a wrong type, or a value out
            of range.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(
            _describe(fault, model.model_fields) for fault in error.errors(include_url=False)
        )
        raise ConfigError(f"configuration: {faults}") from None


def _describe(fault: Mapping[str, Any], known: Iterable[str]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key.replace("-", "_"), list(known), n=1)
        return f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, safely.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping of names to values.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        AttributeError,
        KeyError,
        TypeError,
    ) as error:
        # PyYAML's constructors raise the last three if a value contradicts its tag.
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must be a mapping of option names to values")
    return values


def dump_yaml(config: BaseModel) -> str:
    """Return the resolved configuration as YAML; ``--config`` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
