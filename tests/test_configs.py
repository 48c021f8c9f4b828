"""Every file in configs/ is headed by the command that runs it, holds only overrides, and is valid."""

import shlex
from pathlib import Path

import pytest

from arelu_tl.records.config import FinetuneConfig, SweepConfig, check_config, read_yaml

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_config_is_valid_and_headed_by_its_command(path: Path) -> None:
    head = path.read_text().splitlines()[0]
    program, command, *rest = shlex.split(head.removeprefix("# "))
    assert [program, *rest] == ["arelu-tl", "DATA", "--config", f"configs/{path.name}"]
    model = {"finetune": FinetuneConfig, "sweep": SweepConfig}[command]
    config = check_config(read_yaml(path), model)
    defaults = model()
    for key in read_yaml(path):
        assert getattr(config, key) != getattr(defaults, key), f"{key} only repeats the default"
