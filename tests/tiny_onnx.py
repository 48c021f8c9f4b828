"""Files as ``arelu-tl export --format onnx`` writes them, of a model that needs no training: logits by mean colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ["red", "green", "blue"]
DATA: dict[str, Any] = {
    "input_size": [3, 8, 8], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip


def write_tiny_onnx(
    path: Path,
    *,
    classes: list[str] | None = None,
    weights: np.ndarray | None = None,
    with_preprocessing: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A file whose logits are ``weights`` (3, classes; four times the identity when None) times the mean of R, G and B.

    Args:
        with_preprocessing: the other form: decoded pictures in, probabilities out.
        metadata: other entries than ours.
    """
    classes = CLASSES if classes is None else classes
    weights = 4 * np.eye(3, len(classes)) if weights is None else weights
    initializers = [numpy_helper.from_array(np.asarray(weights, np.float32), "weights")]
    if with_preprocessing:
        initializers += [
            numpy_helper.from_array(np.float32(v), n) for v, n in ((127.5, "half"), (1.0, "one"))
        ]
        initializers.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
        nodes = [
            helper.make_node("Cast", ["pictures"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["floats", "half"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "one"], ["normalised"]),
        ]
        port = helper.make_tensor_value_info(
            "pictures", TensorProto.UINT8, ["batch", "height", "width", 3]
        )
        last = [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)]
    else:
        initializers.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
        nodes = [helper.make_node("Identity", ["pictures"], ["normalised"])]
        port = helper.make_tensor_value_info(
            "pictures", TensorProto.FLOAT, ["batch", *DATA["input_size"]]
        )
        last = []
    nodes += [
        helper.make_node("ReduceMean", ["normalised", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
        *last,
    ]
    out = helper.make_tensor_value_info(
        nodes[-1].output[0], TensorProto.FLOAT, ["batch", len(classes)]
    )
    graph = helper.make_graph(nodes, "tiny", [port], [out], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ours = {
        "classes": json.dumps(classes),
        "preprocessing": json.dumps(DATA),
        "arelu_tl": json.dumps({"arm": "arelu"}),
    }
    for key, value in (ours if metadata is None else metadata).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def logits_of(pixels: np.ndarray) -> np.ndarray:
    """What such a file, with weights of its own, makes of one picture (H, W, 3) of one colour."""
    return 4 * (pixels.reshape(-1, 3).mean(axis=0) / 127.5 - 1)
