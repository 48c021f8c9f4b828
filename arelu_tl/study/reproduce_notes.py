"""What stands under a reproduction's table: what was trained on, for how long, and what is not as in the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from arelu_tl.data.digit_sets import DigitSet
from arelu_tl.records import runs
from arelu_tl.records.reproduction import ReproduceConfig
from arelu_tl.records.runs import RunRecord
from arelu_tl.records.storage import read_json
from arelu_tl.study.reproduce_units import PAPERS_EPOCH, PRETRAIN_LR, Task, steps_per_epoch

# What the authors' code makes of two activations, which their names do not tell.
_ODD = {
    "maxout": "Maxout pools one channel there, which makes it the identity",
    "slaf": "SLAF has two terms, which makes it the straight line 1 + x",
}


def reproduction_notes(config: ReproduceConfig, tasks: Sequence[Task]) -> list[str]:
    """In sentences."""
    sets = {task.target.name: task.target for task in tasks}.values()
    notes = [f"{each.told}: {len(each.train):,} pictures to train on, {len(each.test):,} to test." for each in sets]
    notes += [_epoch(config, each) for each in sets]
    several = "s" * (len(config.seeds) > 1)
    notes.append(
        f"{len(config.seeds)} training{several} of each (seed{several} {', '.join(map(str, config.seeds))}; the paper has 5). "
        + ("Of a seed all activations " + ("were first trained from" if config.transfer else "begin with"))
        + " the same weights and see the same batches in the same order."
    )
    if config.transfer:
        epochs = f"{config.pretrain_epochs} epoch{'s' * (config.pretrain_epochs > 1)}"
        notes.append(
            f"Each activation was first trained on the other set, {epochs} with SGD at {PRETRAIN_LR:g} "
            f"(the paper: 20), then all its weights on this one, {config.epochs} (the paper: 100). Before: as the other "
            "set left it."
        )
    notes.append(
        "MNIST-Conv as in the authors' code: convolution, 2 x 2 max pooling and activation three times, then a linear layer; "
        "pixels from 0 to 1, no augmentation; SGD with momentum 0.9, Adam with torch's defaults, no weight decay, no schedule."
    )
    odd = [sentence for name, sentence in _ODD.items() if name in config.activations]
    if odd:
        notes.append(
            f"{'; '.join(odd)}: both as in the authors' code." if len(odd) > 1 else f"{odd[0]}: as in the authors' code."
        )
    return notes


def environment_notes(trained: Sequence[RunRecord]) -> list[str]:
    """A sentence where runs of one table were trained in several environments, as those of a study gone on with elsewhere can be.

    Raises:
        ArtefactError: a run's environment.json cannot be read.
    """
    kinds = Counter(_kind(read_json(run.path / runs.ENVIRONMENT)) for run in trained)
    if len(kinds) < 2:
        return []
    counted = "; ".join(f"{count} with {kind}" for kind, count in kinds.most_common())
    return [f"The trainings are of several environments ({counted}): the same to rounding, not to the bit."]


def _kind(environment: dict[str, Any]) -> str:
    convolutions = str(environment.get("convolutions")).partition(" ")[0].rstrip(":")
    return (
        f"torch {environment.get('packages', {}).get('torch')} on {environment.get('device_name')}, {convolutions} convolutions"
    )


def _epoch(config: ReproduceConfig, digits: DigitSet) -> str:
    steps = steps_per_epoch(config, digits)
    if digits.whole:
        return f"An epoch is {steps} steps of {config.batch_size}, one pass; the last batch is what is left."
    passes = PAPERS_EPOCH / len(digits.train)
    return (
        f"An epoch on {digits.name} is {steps} steps of {config.batch_size}, as many as on MNIST's 60,000 pictures: here "
        f"{passes:.0f} reshuffled passes over fewer pictures, where the paper has one."
    )
