"""Time an export against the baseline arm's, in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from arelu_tl.backbone.loading import build_architecture
from arelu_tl.exporting.artefacts import make_graph, make_plain
from arelu_tl.exporting.onnx_file import open_session, to_onnx
from arelu_tl.exporting.pt2_file import read_pt2
from arelu_tl.exporting.report import ExportReport, Timing
from arelu_tl.models.load import load_model
from arelu_tl.records import runs
from arelu_tl.records.card import ModelCard

BATCHES = (1, 32)
# Per batch size: rounds run until this time is over, but at least and at most as many as below.
_SECONDS = 20.0
_ROUNDS = (5, 100)


def time_export(
    report: ExportReport,
    format: str,  # noqa: A002
    card: ModelCard,
    folding: bool,
    run: runs.RunRecord,
    say: Callable[[str], None],
) -> ExportReport:
    """Add to ``report`` the times of its export and of a float32 export of the unmodified backbone.

    The baseline is the study's relu run with the same learning rate and seed, or else any relu run
    of the study, or else the same architecture with random weights, which take equally long.
    """
    model, name = _baseline(run, card)
    say(f"timing beside {name}: batches of {' and '.join(map(str, BATCHES))}, in turns")
    plain = replace(card, arm="relu", sites=[], form="trained", frozen_sites=[])
    with torch.inference_mode():
        ours, theirs = _both(report.path, format, model, plain, folding)
        timings = [time_pair(ours, theirs, batch) for batch in BATCHES]
    return replace(report, baseline=name, timings=timings)


Run = Callable[[int], Callable[[], Any]]


def time_pair(ours: Run, theirs: Run, batch: int, *, seconds: float = _SECONDS) -> Timing:
    """Time both in turns until ``seconds`` are over, after two warm-up runs of each.

    Args:
        ours, theirs: each makes, for a batch size, a function that runs one batch.
        batch: the batch size.
        seconds: time to measure.
    """
    pair = ours(batch), theirs(batch)
    for run in pair * 2:
        run()
    taken: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while (count := len(taken[0])) < _ROUNDS[0] or (
        count < _ROUNDS[1] and time.perf_counter() < end
    ):
        # The order alternates, because the second finds the caches as the first left them.
        for which in (0, 1) if count % 2 else (1, 0):
            start = time.perf_counter()
            pair[which]()
            taken[which].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*taken, strict=True)]
    return Timing(
        batch, 1000 * statistics.median(taken[0]), 1000 * statistics.median(taken[1]),
        statistics.median(ratios), min(ratios), max(ratios), len(ratios),
    )  # fmt: skip


def _baseline(run: runs.RunRecord, card: ModelCard) -> tuple[nn.Module, str]:
    config = run.config
    around = runs.load_study(run.path.parent).runs if runs.is_study(run.path.parent) else []
    found = [r for r in around if r.config.arm == "relu" and (r.path / runs.BEST).is_file()]
    found.sort(key=lambda r: (r.config.lr, r.config.seed) != (config.lr, config.seed))
    if found:
        return load_model(found[0].path)[0], found[0].path.name
    model = build_architecture(
        card.architecture,
        num_classes=len(card.classes),
        img_size=card.img_size,
        model_args=card.model_args,
    )
    return model.eval(), f"{card.architecture} with random weights (the study has no relu run)"


def _both(
    path: Path,
    format: str,  # noqa: A002
    model: nn.Module,
    card: ModelCard,
    folding: bool,
) -> tuple[Run, Run]:
    size = card.data_config["input_size"]
    if format == "safetensors":
        return _torch_runner(load_model(path)[0], size), _torch_runner(
            make_plain(model, card, folding=folding).model, size
        )
    module, _, _ = make_graph(model, card, folding=folding)
    if format == "onnx":
        return onnx_runner(path.read_bytes(), size), onnx_runner(
            to_onnx(module, torch.zeros(2, *size)), size
        )
    # Safe to load: this process has just written the file.
    return _torch_runner(read_pt2(path.read_bytes(), ())[0], size), _torch_runner(module, size)


def onnx_runner(content: bytes, input_size: Sequence[int]) -> Run:
    """Make a runner that feeds batches of noise to an ONNX file's content, on all cores."""
    session = open_session(content)
    (port,) = session.get_inputs()

    def prepared(batch: int) -> Callable[[], Any]:
        stream = np.random.default_rng(0)
        pictures: Any = stream.standard_normal((batch, *input_size), dtype=np.float32)
        if port.type == "tensor(uint8)":
            pictures = stream.integers(0, 256, (batch, *input_size[1:], 3), dtype=np.uint8)
        return lambda: session.run(None, {port.name: pictures})

    return prepared


def _torch_runner(model: Callable[[torch.Tensor], torch.Tensor], input_size: Sequence[int]) -> Run:
    def prepared(batch: int) -> Callable[[], Any]:
        pictures = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0))
        return lambda: model(pictures)

    return prepared
