"""The configuration of reproduce: what it refuses, and that it reads back as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.errors import ConfigError
from arelu_tl.paper.config import ACTIVATIONS, QUICK, TRANSFER, ReproduceConfig
from arelu_tl.records.config import ARMS, check_config, dump_yaml, read_yaml


def test_it_names_the_catalogues_activations_and_each_can_be_a_runs_arm() -> None:
    assert list(CATALOGUE) == list(ACTIVATIONS)
    assert set(ACTIVATIONS) <= set(ARMS)


def test_without_settings_it_is_the_papers_table() -> None:
    config = ReproduceConfig()
    cells = len(config.activations) * len(config.opts) * len(config.lrs) * len(config.seeds)
    assert (cells, config.batch_size, config.epochs, config.chosen_dataset) == (
        760,
        128,
        1,
        "digits",
    )


def test_it_reads_back_as_it_was_written(tmp_path: Path) -> None:
    config = check_config(
        {"data": "x", "lrs": "1e-2,1e-5", "activations": "relu,arelu", **QUICK}, ReproduceConfig
    )
    (tmp_path / "r.yaml").write_text(dump_yaml(config))
    assert check_config(read_yaml(tmp_path / "r.yaml"), ReproduceConfig) == config
    assert check_config({"transfer": True, **TRANSFER}, ReproduceConfig).lrs == [1e-5]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"activations": "relu,swish"}, "swish"),
        ({"activations": "relu,relu"}, "activations names a value twice"),
        ({"lrs": "0"}, "lrs.0"),
        ({"lrs": ""}, "lrs"),
        ({"opts": "adamw"}, "adamw"),
        ({"dataset": "mnist"}, "`data`"),
        ({"dataset": "digits", "data": "x"}, "leave out `data`"),
        ({"download": True}, "`data`"),
        ({"transfer": True}, "one optimiser"),
        ({"transfer": True, "opts": "sgd", "dataset": "digits"}, "leave out `dataset`"),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"batch_size": 0}, "batch_size"),
        ({"name": "../x"}, "name"),
    ],
)
def test_what_it_refuses_is_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match="configuration: ") as refused:
        check_config(values, ReproduceConfig)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
