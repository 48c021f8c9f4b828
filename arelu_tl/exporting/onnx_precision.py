"""ONNX files in fewer bits, by onnxruntime's own tools."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from arelu_tl.errors import ArtefactError
from arelu_tl.models.onnx_session import INPUT


def to_fp16(content: bytes) -> bytes:
    """Weights and arithmetic in float16; pictures and logits stay float32.

    Raises:
        ArtefactError: it cannot be converted.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with _said_once("float16"):
        model = OnnxModel(convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True))
        model.topological_sort()  # the converter puts its casts last
    return bytes(model.model.SerializeToString())


def quantize_dynamic(content: bytes) -> bytes:
    """Weights in 8 bits; what flows between layers is quantized while the model runs, by its range in each batch.

    The first convolution and those of single channels stay: one scale for all their weights loses too much, and they are small.
    (On the demo's net accuracy falls from 0.84 to 0.26 with them and to 0.84 without.)

    Raises:
        ArtefactError: it cannot be quantized.
    """
    import onnx
    from onnxruntime import quantization

    convolutions = [node for node in onnx.load_from_string(content).graph.node if node.op_type == "Conv"]
    single = [node for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    with _said_once("8 bits"), _files(content) as (source, target):
        # Unsigned weights: the processor's convolution of whole numbers knows no others.
        quantization.quantize_dynamic(
            source, target, weight_type=quantization.QuantType.QUInt8,
            nodes_to_exclude=[node.name for node in (*convolutions[:1], *single)],
        )  # fmt: skip
        return target.read_bytes()


def quantize_static(content: bytes, batches: Iterable[Tensor]) -> bytes:
    """Weights (a scale for each channel) and what flows between layers in 8 bits, by the ranges seen on ``batches``.

    Args:
        batches: preprocessed pictures (B, C, H, W) like those that it will see.

    Raises:
        ArtefactError: it cannot be quantized.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._rest, None)
            return None if batch is None else {INPUT: batch.numpy()}

    with _said_once("8 bits"), _files(content) as (source, target):
        quantization.quantize_static(
            source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            # 7 bits of weight: with 8, sums of products saturate on processors without VNNI, where most accuracy was lost.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()


@contextmanager
def _files(content: bytes) -> Iterator[tuple[Path, Path]]:
    """Where the quantizer, which works on files, finds its model and puts its result."""
    with tempfile.TemporaryDirectory(prefix="arelu-tl-") as folder:
        source = Path(folder) / "source.onnx"
        source.write_bytes(content)
        yield source, Path(folder) / "target.onnx"


@contextmanager
def _said_once(what: str) -> Iterator[None]:
    """Quiet the tools' advice, which is about their own pre-processing; tell their errors in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except ArtefactError:
        raise
    except Exception as error:  # the tools raise whatever they stumble over
        raise ArtefactError(f"this model has no form in {what}: {' '.join(str(error).split())[:300]}") from error
    finally:
        logging.disable(before)
