"""Add the preprocessing to an ONNX graph: decoded pictures in, probabilities out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from arelu_tl.errors import ConfigError
from arelu_tl.models.onnx_session import INPUT, LOGITS, PROBABILITIES

# Pillow's resize is a filter as wide as the step between pixels, cut off at the border. ONNX
# describes it by these attributes, antialias and exclude_outside. onnxruntime filters rows first,
# then columns, as Pillow does up to version 12. Pillow 13 sometimes uses the other order, which
# rounds differently.
_FILTERS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
}
_PIXELS, _PREPROCESSED = "pixels", "preprocessed"


def with_preprocessing(content: bytes, data_config: Mapping[str, Any]) -> bytes:
    """Make ``content`` take decoded pictures and give probabilities.

    The input is RGB of any size, uint8 (batch, height, width, 3); the output is
    (batch, classes). Resize, centre crop and normalisation are those of ``data_config``.
    onnxruntime's resized pixels are within one level of 256 of Pillow's when Pillow filters rows
    first.

    Raises:
        ConfigError: ONNX cannot express this preprocessing.
    """
    import onnx

    nodes, constants = _pixel_graph(data_config)
    model = onnx.load_from_string(content)
    inner = _PREPROCESSED
    for node in model.graph.node:
        node.input[:] = [inner if name == INPUT else name for name in node.input]
    nodes = nodes + [
        onnx.helper.make_node(
            "Cast", [_PIXELS], ["preprocessing/float"], to=onnx.TensorProto.FLOAT
        ),
        onnx.helper.make_node(
            "Div", ["preprocessing/float", "preprocessing/255"], ["preprocessing/unit"]
        ),
        onnx.helper.make_node(
            "Sub", ["preprocessing/unit", "preprocessing/mean"], ["preprocessing/centred"]
        ),
        onnx.helper.make_node("Div", ["preprocessing/centred", "preprocessing/std"], [inner]),
    ]
    constants = constants | {
        "preprocessing/255": np.float32(255),
        "preprocessing/mean": np.array(data_config["mean"], np.float32).reshape(1, 3, 1, 1),
        "preprocessing/std": np.array(data_config["std"], np.float32).reshape(1, 3, 1, 1),
    }
    body = [
        *nodes,
        *model.graph.node,
        onnx.helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1),
    ]
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    graph = onnx.helper.make_graph(
        body,
        model.graph.name,
        [
            onnx.helper.make_tensor_value_info(
                INPUT, onnx.TensorProto.UINT8, ["batch", "height", "width", 3]
            )
        ],
        [
            onnx.helper.make_tensor_value_info(
                PROBABILITIES, onnx.TensorProto.FLOAT, ["batch", classes]
            )
        ],
        [
            *model.graph.initializer,
            *(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()),
        ],
    )
    model.graph.CopyFrom(graph)
    return bytes(model.SerializeToString())


def showing_input(content: bytes) -> bytes:
    """Make a result of ``with_preprocessing`` give the preprocessed pictures instead.

    Its output is float (batch, 3, H, W), the input of the network inside.
    """
    import onnx

    model = onnx.load_from_string(content)
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(_PREPROCESSED, onnx.TensorProto.FLOAT, None)
    )
    return bytes(model.SerializeToString())


def _pixel_graph(data_config: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return (nodes from INPUT to the resized and cropped picture, their constants)."""
    import onnx

    _, height, width = data_config["input_size"]
    crop_pct, mode = data_config["crop_pct"], data_config["crop_mode"]
    scaled = math.floor(height / crop_pct), math.floor(width / crop_pct)
    kind = _FILTERS.get(data_config["interpolation"])
    if kind is None:
        raise ConfigError(
            f"`with_preprocessing`: ONNX has no resize like Pillow's {data_config['interpolation']}"
        )
    if (
        mode not in ("center", "squash")
        or (mode == "center" and scaled[0] != scaled[1])
        or crop_pct > 1
    ):
        raise ConfigError(
            f"`with_preprocessing`: crop mode {mode} at {height} x {width} and {crop_pct} "
            "is not supported"
        )
    node = onnx.helper.make_node
    constants: dict[str, Any] = {}

    def constant(name: str, value: Any) -> str:
        constants[f"preprocessing/{name}"] = np.asarray(value, np.int64)
        return f"preprocessing/{name}"

    def made(name: str) -> str:
        return f"preprocessing/{name}"

    nodes = []
    if mode == "squash":
        size = constant("size", scaled)
    else:
        # As in torchvision: the shorter side becomes the target, the longer is truncated to an
        # integer.
        size = made("size")
        nodes += [
            node("Shape", [INPUT], [made("sides")], start=1, end=3),
            node("ReduceMin", [made("sides")], [made("short")], keepdims=1),
            node("Mul", [made("sides"), constant("target", [scaled[0]])], [made("product")]),
            node("Div", [made("product"), made("short")], [size]),
        ]
    crop = constant("crop", [height, width])
    nodes += [
        node(
            "Resize",
            [INPUT, "", "", size],
            [made("resized")],
            antialias=1,
            axes=[1, 2],
            exclude_outside=1,
            **kind,
        ),
        # The centre; halves round to even, as in Python's round().
        node("Sub", [size, crop], [made("spare")]),
        node("Cast", [made("spare")], [made("spare_float")], to=onnx.TensorProto.FLOAT),
        node("Div", [made("spare_float"), made("two")], [made("half")]),
        node("Round", [made("half")], [made("half_rounded")]),
        node("Cast", [made("half_rounded")], [made("start")], to=onnx.TensorProto.INT64),
        node("Add", [made("start"), crop], [made("end")]),
        node(
            "Slice",
            [made("resized"), made("start"), made("end"), constant("axes", [1, 2])],
            [made("cropped")],
        ),
        node("Transpose", [made("cropped")], [_PIXELS], perm=[0, 3, 1, 2]),
    ]
    constants["preprocessing/two"] = np.float32(2)
    return nodes, constants
