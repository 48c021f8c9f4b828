"""Choose a study's device, its loader processes, and each process's share of a batch."""

from __future__ import annotations

import os

import torch

from arelu_tl.errors import ConfigError
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.device import choose_device
from arelu_tl.training.distributed import World


def device_of(config: FinetuneConfig, world: World) -> torch.device:
    """Return the requested device; with several processes, this process's own GPU or the CPU.

    Raises:
        ConfigError: there is no such device, there are fewer GPUs than processes, or the device
            does not support the settings.
    """
    if world.size == 1:
        return choose_device(config.device)
    name = config.device
    if name is None:
        best = torch.accelerator.current_accelerator(check_available=True)
        name = best.type if best is not None else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(
            f"`device` {name}: several processes train on cuda, one GPU each, or on cpu"
        )
    if name == "cpu":
        if config.sync_bn:
            raise ConfigError(
                "`sync_bn` needs GPUs; on the CPU each process normalises by its own slice: leave "
                "it out"
            )
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if world.local_rank >= found:
        raise ConfigError(
            f"{world.local_size} processes and {found} GPUs: start as many processes as GPUs, or "
            "pass `device='cpu'`"
        )
    device = choose_device(f"cuda:{world.local_rank}")
    torch.cuda.set_device(device)
    return device


def check_batches(config: FinetuneConfig, world: World, pictures: int | None = None) -> None:
    """Raise unless every batch can be cut into equal slices, one for each process.

    Args:
        pictures: number of training pictures; None if it is not known yet.

    Raises:
        ConfigError: a batch cannot be cut equally; the message names a batch size that can.
    """
    if world.size == 1 or config.batch_size == "auto":
        return
    size, most = (
        config.batch_size,
        config.batch_size if pictures is None else min(config.batch_size, pictures),
    )
    if most < world.size:
        few = (
            f"`batch_size` {size}"
            if pictures is None or size <= pictures
            else f"{pictures} training pictures"
        )
        raise ConfigError(f"{few} for {world.size} processes: start fewer of them")
    if size % world.size or size > most:
        raise ConfigError(
            f"`batch_size` {size} is all processes' pictures in a step, and {world.size} of them "
            "cannot share it evenly"
            + (f" out of {pictures}" if size > most else "")
            + f": pass {most // world.size * world.size}, or start another number of processes"
        )


def own_slice(config: FinetuneConfig, world: World) -> FinetuneConfig:
    """Return ``config`` with the batch size of one process."""
    if config.batch_size == "auto":
        return config
    return config.model_copy(update={"batch_size": config.batch_size // world.size})


def choose_workers(asked: int | None, device: torch.device, processors: int | None = None) -> int:
    """Return the number of loader processes.

    When training on a GPU most CPUs are idle, so most of them load; when training on the CPU, only
    those that training leaves idle.

    Args:
        asked: the number that the user requested; None if not given.
        processors: number of CPUs for this run; None for all of the machine's.
    """
    if asked is not None:
        return asked
    processors = processors or os.cpu_count() or 1
    if device.type != "cpu":
        return min(8, processors - 1)
    return min(4, max(processors - torch.get_num_threads(), processors // 4))


def slow_mixed_precision(device: torch.device, config: FinetuneConfig) -> str | None:
    """Explain in one line why ``--amp`` slows down training on ``device``.

    Returns:
        The explanation; None if it does not, or if that is not known.
    """
    if device.type != "cpu" or not config.amp or not hasattr(torch.cpu, "get_capabilities"):
        return None
    units = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
    if any(torch.cpu.get_capabilities().get(unit) for unit in units):
        return None
    return (
        "`amp`: this processor has no bfloat16 units, so that training is slower with it than "
        "without"
    )
