"""A right export is let through however a processor rounds: by another order of sums, other instructions, another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rounding import CONDITIONS, INSTRUCTIONS, proofs, proofs_elsewhere
from trained_runs import write_trained_run

import arelu_tl
from arelu_tl.exporting.proof import MULTIPLE

FORMATS = {"safetensors": "", "onnx": ".onnx", "pt2": ".pt2"}
# family: (architecture, picture size)
FAMILIES = {
    "residual": ("test_resnet", 64), "relu6": ("mobilenetv2_035", 64), "squeeze-excite": ("semnasnet_050", 64),
    "grouped": ("regnetx_002", 64), "plain": ("vgg11_bn", 32), "default": ("tf_efficientnet_lite0", 96),
}  # fmt: skip
FAST = "residual"


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, marks=() if f == FAST else pytest.mark.slow) for f in FAMILIES],
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path]]:
    """A run and its exports: folded and, in the slow suite, unfolded and as a program of torch's."""
    place = tmp_path_factory.mktemp("study")
    run = write_trained_run(place, *FAMILIES[request.param][:1], size=FAMILIES[request.param][1])
    return run, [
        arelu_tl.export(
            run, format_, place / f"{'folded' if folding else 'unfolded'}{ending}", folding=folding
        ).path
        for format_, ending in FORMATS.items()
        for folding in ((True,) if request.param == FAST else (True, False))
        if request.param != FAST or format_ != "pt2"
    ]


def require_room(found: list[dict[str, Any]], forms: int) -> None:
    assert len(found) == len(CONDITIONS) * forms
    # Half of what is allowed is left, and what the multiple is multiplied with is of the right size: no floor hides it.
    assert max(each["share"] for each in found) < 0.5
    assert max(each["difference"] / each["own"] for each in found) < MULTIPLE / 2


def test_under_other_threads_layouts_and_kernels(exported: tuple[Path, list[Path]]) -> None:
    run, exports = exported
    require_room(
        proofs(run, exports), len(exports) + sum(path.suffix == ".onnx" for path in exports)
    )


@pytest.mark.parametrize(
    "instructions",
    [
        pytest.param(name, marks=() if name == "torch without AVX" else pytest.mark.slow)
        for name in INSTRUCTIONS
    ],
)
def test_with_other_instructions(exported: tuple[Path, list[Path]], instructions: str) -> None:
    run, exports = exported
    found = proofs_elsewhere(run, exports, instructions)
    require_room(found, len(exports) + sum(path.suffix == ".onnx" for path in exports))
