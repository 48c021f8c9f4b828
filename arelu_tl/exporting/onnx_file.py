"""Make one ONNX file: pictures in, logits out, and in its metadata all that its user needs.

It needs the extra ``export``.
"""

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
# The largest protobuf message, in bytes.
_LARGEST = 2**31 - 1


def require_onnx() -> None:
    """Check that the packages of the extra ``export`` are installed.

    Raises:
        ConfigError: one of them is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(
                f"`format='onnx'` needs the package {package}: pip install 'arelu-tl[export]'"
            ) from None


def to_onnx(module: fx.GraphModule, example: Tensor) -> bytes:
    """Convert ``module`` to ONNX, with a variable batch size.

    The exporter's notes about this machine (paths, traces) are removed.

    Raises:
        ArtefactError: an operator has no counterpart in ONNX.
    """
    try:
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[LOGITS],
            opset_version=OPSET,
            verbose=False,
        )
    except Exception as error:
        raise ArtefactError(
            f"this model has no form in ONNX: {' '.join(str(error).split())[:300]}"
        ) from error
    if exported is None:
        raise ArtefactError("this model has no form in ONNX: the exporter gave nothing")
    model = exported.model_proto
    _forget_where(model)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return _serialised(model)


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Replace the metadata in an ONNX file's ``content`` by ``metadata``, and check the model.

    Raises:
        ArtefactError: the file would exceed 2 GB.
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
    """Read the metadata of an ONNX file's ``content``: see ``read_metadata``."""
    return read_metadata(open_session(content).get_modelmeta().custom_metadata_map)


def read_metadata(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse the texts that ``onnx_metadata`` wrote."""
    return {key: json.loads(text) for key, text in texts.items()}


def require_slopes(content: bytes, module: fx.GraphModule) -> None:
    """Require that each leaky ReLU slope in ``content`` occur in ``module``, its source.

    A comparison of answers may miss a wrong slope if the slope is small.

    Raises:
        ArtefactError: a slope does not occur there.
    """
    import onnx

    known = {
        float(np.float32(node.args[1]))
        for node in module.graph.nodes
        if node.target == torch.ops.aten.leaky_relu.default
    }
    nodes = (
        node for node in onnx.load_from_string(content).graph.node if node.op_type == "LeakyRelu"
    )
    for slope in (
        attribute.f for node in nodes for attribute in node.attribute if attribute.name == "alpha"
    ):
        if slope not in known:
            raise ArtefactError(
                f"the ONNX graph has a leaky ReLU of slope {slope:.6g}, which no site has; "
                "nothing was written"
            )


def _serialised(model: Any) -> bytes:
    if model.ByteSize() > _LARGEST:
        raise ArtefactError("the file would exceed ONNX's 2 GB: export `format='safetensors'`")
    return bytes(model.SerializeToString())


def _forget_where(model: Any) -> None:
    """Drop the exporter's notes, which hold paths and traces of this machine."""
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    for part in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *model.functions,
    ):
        part.doc_string = ""
        del part.metadata_props[:]


def open_session(content: bytes, *, optimised: bool = True, threads: int = 0) -> Any:
    """Open an onnxruntime session on the CPU; ``threads`` 0 means one thread per core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers(content: bytes, *, optimised: bool = True) -> Answer:
    """Make a function from pictures (B, C, H, W) to logits that runs ``content`` on the CPU."""
    session = open_session(content, optimised=optimised)

    def answer(pictures: Tensor) -> Tensor:
        (logits,) = session.run(None, {INPUT: pictures.numpy()})
        return torch.from_numpy(logits)

    return answer


def onnx_metadata(card: Mapping[str, Any], trained_on: TrainedOn | None) -> dict[str, str]:
    """Write the metadata of a file: classes, preprocessing, the whole card and the training data.

    Each value is JSON in ASCII, because folder names need not be valid text. The training data is
    left out where it is not known.
    """
    data = card["data_config"]
    return {
        "classes": json.dumps(card["classes"]),
        "preprocessing": json.dumps(data),
        "arelu_tl": json.dumps(card),
        **({TRAINED_ON: json.dumps(trained_on.to_text())} if trained_on is not None else {}),
    }
