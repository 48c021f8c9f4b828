"""A run's exports held to the proof under conditions that change how sums are rounded.

Threads, the layout of maps and oneDNN change within a process; which instructions torch and oneDNN may use is settled when a
process begins: ``python tests/exporting/rounding.py RUN EXPORT...`` prints, as JSON, what it finds under those that it was given.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arelu_tl.exporting.onnx_file import open_session
from arelu_tl.exporting.pictures import ExportPictures
from arelu_tl.exporting.proof import Answer, measure, proof_batches, prove
from arelu_tl.exporting.pt2_file import read_pt2
from arelu_tl.models.load import load_model
from arelu_tl.models.run_pictures import run_pictures

INSTRUCTIONS = {
    "torch without AVX": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN with AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}
# (threads, layout, whether oneDNN is on). With two threads once: where others want the processors too, they wait more than work.
CONDITIONS = (
    *itertools.product((1,), (torch.contiguous_format, torch.channels_last), (True, False)),
    (2, torch.contiguous_format, True),
)


def proofs(run: Path, exports: Sequence[Path]) -> list[dict[str, Any]]:
    """What proves each of the ``exports`` of ``run`` under every condition of this process: its fields, and those.

    Raises:
        ArtefactError: one is refused.
    """
    model, card = load_model(run)
    pictures = ExportPictures(run_pictures(run), card.classes, card.data_config).proof()
    batches = proof_batches(card.data_config["input_size"], pictures)
    found = []
    for threads, layout, onednn in CONDITIONS:
        with torch.inference_mode(), _condition(threads, onednn):
            yardstick = measure(model.to(memory_format=layout), batches)
            for export in exports:
                for name, candidate in _candidates(export, threads, layout).items():
                    told = asdict(prove(name, yardstick, candidate))
                    last = layout is torch.channels_last
                    found.append(
                        {**told, "threads": threads, "channels_last": last, "onednn": onednn}
                    )
    return found


def proofs_elsewhere(run: Path, exports: Sequence[Path], instructions: str) -> list[dict[str, Any]]:
    """``proofs`` in a process that may use these ``INSTRUCTIONS`` alone."""
    done = subprocess.run(
        [sys.executable, __file__, str(run), *map(str, exports)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **INSTRUCTIONS[instructions]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def _candidates(export: Path, threads: int, layout: torch.memory_format) -> dict[str, Answer]:
    if export.is_dir():
        return {export.name: load_model(export)[0].to(memory_format=layout)}
    content = export.read_bytes()
    if export.suffix == ".onnx":
        return {
            f"{export.name}, optimisation {state}": _session(content, state == "on", threads)
            for state in ("on", "off")
        }
    return {export.name: read_pt2(content, ())[0].to(memory_format=layout)}


def _session(content: bytes, optimised: bool, threads: int) -> Answer:
    session = open_session(content, optimised=optimised, threads=threads)

    def answer(pictures: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pictures": pictures.numpy()})[0])

    return answer


@contextmanager
def _condition(threads: int, onednn: bool) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a GPU that is not there
            with torch.backends.mkldnn.flags(enabled=onednn):
                yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(proofs(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))))
