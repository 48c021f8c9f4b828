"""One ONNX file: pictures in, logits out, with everything inside that its user needs (extra ``export``)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from arelu_tl.errors import ArtefactError, ConfigError
from arelu_tl.exporting.proof import Answer
from arelu_tl.records.storage import make_folder, write_bytes

OPSET = 20
INPUT, OUTPUT = "pictures", "logits"
# A protobuf message ends here.
_LARGEST = 2**31 - 1


def require_onnx() -> None:
    """
    Raises:
        ConfigError: the packages of the extra ``export`` are missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(f"--format onnx needs the package {package}: pip install 'arelu-tl[export]'") from None


def to_onnx(module: fx.GraphModule, example: Tensor, metadata: Mapping[str, str]) -> bytes:
    """The content of an ONNX file of ``module``, with any number of pictures as its first dimension.

    What the exporter notes of where it ran (paths, traces) is left out.

    Raises:
        ArtefactError: an operator has no counterpart in ONNX, or the file would exceed 2 GB.
    """
    import onnx

    try:
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
        exported = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, verbose=False
        )
    except Exception as error:
        raise ArtefactError(f"this model has no form in ONNX: {' '.join(str(error).split())[:300]}") from error
    if exported is None:
        raise ArtefactError("this model has no form in ONNX: the exporter gave nothing")
    model = exported.model_proto
    _forget_where(model)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.metadata_props[:]
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)
    model.producer_name = "arelu-tl"
    if model.ByteSize() > _LARGEST:
        raise ArtefactError("the file would exceed ONNX's 2 GB: export --format safetensors")
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _forget_where(model: Any) -> None:
    """Drop the exporter's notes, which hold paths and traces of this machine."""
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]


def answers(content: bytes, *, optimised: bool) -> Answer:
    """What onnxruntime makes of an ONNX file's content: pictures (B, C, H, W) to logits, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def answer(pictures: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: pictures.numpy()})
        return torch.from_numpy(logits)

    return answer


def onnx_metadata(card: Mapping[str, Any]) -> dict[str, str]:
    """The card for a file's metadata: what a user of the file needs by itself, and the whole as JSON."""
    data = card["data_config"]
    return {
        "classes": json.dumps(card["classes"], ensure_ascii=False),
        "preprocessing": json.dumps(data),
        "arelu_tl": json.dumps(card, ensure_ascii=False),
    }


def write_onnx(path: Path, content: bytes) -> None:
    """Write the file, whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    make_folder(path.parent)
    write_bytes(path, content)
