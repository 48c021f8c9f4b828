"""Convert ONNX files to fewer bits with onnxruntime's tools."""

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
    """Convert weights and arithmetic to float16; pictures and logits stay float32.

    Raises:
        ArtefactError: the model cannot be converted.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with _said_once("float16"):
        model = OnnxModel(
            convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True)
        )
        model.topological_sort()  # the converter appends its casts at the end
    return bytes(model.model.SerializeToString())


def quantize_dynamic(content: bytes) -> bytes:
    """Quantize the weights to 8 bits, and the activations at run time by their range in each batch.

    The first convolution and the grouped ones stay in float32: one scale for all their weights
    loses too much, and they are small. (On the demo's model, accuracy falls from 0.84 to 0.26 if
    they are quantized, and stays at 0.84 if not.)

    Raises:
        ArtefactError: the model cannot be quantized.
    """
    import onnx
    from onnxruntime import quantization

    convolutions = [
        node for node in onnx.load_from_string(content).graph.node if node.op_type == "Conv"
    ]
    single = [
        node for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
    with _said_once("8 bits"), _files(content) as (source, target):
        # Unsigned weights: onnxruntime's integer convolution on the CPU supports no others.
        quantization.quantize_dynamic(
            source, target, weight_type=quantization.QuantType.QUInt8,
            nodes_to_exclude=[node.name for node in (*convolutions[:1], *single)],
        )  # fmt: skip
        return target.read_bytes()


def quantize_static(content: bytes, batches: Iterable[Tensor]) -> bytes:
    """Quantize weights and activations to 8 bits, the activations by their ranges on ``batches``.

    The weights have a scale per channel.

    Args:
        content: of the float32 ONNX file.
        batches: preprocessed pictures (B, C, H, W), like those that the model will see.

    Raises:
        ArtefactError: the model cannot be quantized.
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
            # 7-bit weights: with 8 bits, sums of products saturate on processors without VNNI;
            # most of the accuracy was lost there.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()


@contextmanager
def _files(content: bytes) -> Iterator[tuple[Path, Path]]:
    """Give paths of the input and the output file of the quantizer, which works on files."""
    with tempfile.TemporaryDirectory(prefix="arelu-tl-") as folder:
        source = Path(folder) / "source.onnx"
        source.write_bytes(content)
        yield source, Path(folder) / "target.onnx"


@contextmanager
def _said_once(what: str) -> Iterator[None]:
    """Silence the tools' advice about their own pre-processing; turn errors into one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except ArtefactError:
        raise
    except Exception as error:  # the tools raise errors of any class
        raise ArtefactError(
            f"this model has no form in {what}: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        logging.disable(before)
