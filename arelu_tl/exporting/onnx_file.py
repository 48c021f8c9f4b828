"""One ONNX file: pictures in, logits out, with everything inside that its user needs (extra ``export``)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from arelu_tl.errors import ArtefactError, ConfigError
from arelu_tl.exporting.proof import Answer
from arelu_tl.models.onnx_session import INPUT, LOGITS
from arelu_tl.records.trained_on import TRAINED_ON, TrainedOn
from arelu_tl.version import __version__

OPSET = 20
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


def to_onnx(module: fx.GraphModule, example: Tensor) -> bytes:
    """``module`` in ONNX, with any number of pictures as its first dimension.

    What the exporter notes of where it ran (paths, traces) is left out.

    Raises:
        ArtefactError: an operator has no counterpart in ONNX.
    """
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
        exported = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[LOGITS], opset_version=OPSET, verbose=False
        )
    except Exception as error:
        raise ArtefactError(f"this model has no form in ONNX: {' '.join(str(error).split())[:300]}") from error
    if exported is None:
        raise ArtefactError("this model has no form in ONNX: the exporter gave nothing")
    model = exported.model_proto
    _forget_where(model)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return _serialised(model)


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The content of the file to be written: checked, and with ``metadata`` in place of any other.

    Raises:
        ArtefactError: it would exceed 2 GB.
    """
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)
    model.producer_name, model.producer_version = "arelu-tl", __version__
    finished = _serialised(model)
    onnx.checker.check_model(finished, full_check=True)
    return finished


def metadata_of(content: bytes) -> dict[str, Any]:
    """What a file tells whoever opens it: see ``read_metadata``."""
    return read_metadata(open_session(content).get_modelmeta().custom_metadata_map)


def read_metadata(texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of ``onnx_metadata``, read back."""
    return {key: json.loads(text) for key, text in texts.items()}


def require_slopes(content: bytes, module: fx.GraphModule) -> None:
    """Hold each slope of a leaky ReLU in ``content`` to those of ``module``, of which it was made: where it is small, another
    one need not be seen in any answer.

    Raises:
        ArtefactError: one is not among them.
    """
    import onnx

    known = {float(np.float32(node.args[1])) for node in module.graph.nodes if node.target == torch.ops.aten.leaky_relu.default}
    nodes = (node for node in onnx.load_from_string(content).graph.node if node.op_type == "LeakyRelu")
    for slope in (attribute.f for node in nodes for attribute in node.attribute if attribute.name == "alpha"):
        if slope not in known:
            raise ArtefactError(f"the ONNX graph has a leaky ReLU of slope {slope:.6g}, which no site has; nothing was written")


def _serialised(model: Any) -> bytes:
    if model.ByteSize() > _LARGEST:
        raise ArtefactError("the file would exceed ONNX's 2 GB: export --format safetensors")
    return bytes(model.SerializeToString())


def _forget_where(model: Any) -> None:
    """Drop the exporter's notes, which hold paths and traces of this machine."""
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]


def open_session(content: bytes, *, optimised: bool = True, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; ``threads`` 0 is as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers(content: bytes, *, optimised: bool = True) -> Answer:
    """What onnxruntime makes of an ONNX file's content: pictures (B, C, H, W) to logits, on the CPU."""
    session = open_session(content, optimised=optimised)

    def answer(pictures: Tensor) -> Tensor:
        (logits,) = session.run(None, {INPUT: pictures.numpy()})
        return torch.from_numpy(logits)

    return answer


def onnx_metadata(card: Mapping[str, Any], trained_on: TrainedOn | None) -> dict[str, str]:
    """The card for a file's metadata: what a user of the file needs by itself, and the whole; as JSON in ASCII, since names of
    folders need not be valid text. And what it was trained on, where that is known."""
    data = card["data_config"]
    return {
        "classes": json.dumps(card["classes"]),
        "preprocessing": json.dumps(data),
        "arelu_tl": json.dumps(card),
        **({TRAINED_ON: json.dumps(trained_on.to_text())} if trained_on is not None else {}),
    }
