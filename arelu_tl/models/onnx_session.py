"""Run an ONNX file of ``arelu-tl export`` with onnxruntime and numpy, without torch.

It needs the extra ``export``.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arelu_tl.errors import ArtefactError, ConfigError, DataError
from arelu_tl.records.trained_on import TRAINED_ON, TrainedOn

INPUT, LOGITS, PROBABILITIES = "pictures", "logits", "probabilities"
_FLOATS = ("tensor(float)", "tensor(float16)")


class OnnxSession:
    """An open ONNX file.

    Attributes:
        classes: answer i belongs to classes[i].
        data_config: the preprocessing, as ``Preprocessing`` takes it.
        card: content of the model card.
        trained_on: what the model was trained on; None where the file does not say.
        takes_pictures: whether the preprocessing is part of the graph. If so, the input is one
            decoded picture of any size, uint8 (1, H, W, 3); if not, preprocessed pictures, float
            (N, 3, H, W).
        gives_probabilities: whether the answers are probabilities; if not, logits.
    """

    def __init__(self, path: Path, device: str | None = None) -> None:
        """Open the file at ``path``.

        Args:
            path: the file.
            device: cpu, cuda or cuda:N; None for cpu.

        Raises:
            ConfigError: a package of the extra ``export`` is missing, or onnxruntime does not have
                the device.
            DataError: the file cannot be read.
            ArtefactError: it is damaged, refers to other files, or was not written by
                ``arelu-tl export``.
        """
        onnx, runtime = _package("onnx"), _package("onnxruntime")
        self._path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {os.strerror(error.errno or 0)}") from None
        _require_own_weights(onnx, content, path)
        providers = _providers(runtime, device)
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are reported once, by this class
        # Spinning threads would take CPU time from those that decode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions have no base class
            raise ArtefactError(f"{path}: onnxruntime cannot open it: {_one_line(error)}") from None
        # Without a driver or a library it falls back to the CPU silently.
        if len(providers) > 1 and len(self._session.get_providers()) < 2:
            raise ConfigError(f"`device` {device}: onnxruntime cannot use it here")
        self._read_metadata(self._session.get_modelmeta().custom_metadata_map)
        self._read_ports()

    def _read_metadata(self, inside: Mapping[str, str]) -> None:
        try:
            classes, data_config, card = (
                json.loads(inside[key]) for key in ("classes", "preprocessing", "arelu_tl")
            )
            trained_on = json.loads(inside[TRAINED_ON]) if TRAINED_ON in inside else None
        except KeyError as missing:
            raise ArtefactError(
                f"{self._path}: was not written by arelu-tl export: no {missing} in its metadata"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"{self._path}: its metadata is damaged: {error}") from None
        if not (
            isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
        ):
            raise ArtefactError(
                f"{self._path}: its metadata is damaged: classes is no list of names"
            )
        if not isinstance(data_config, dict) or not isinstance(card, dict):
            raise ArtefactError(
                f"{self._path}: its metadata is damaged: preprocessing or card is no object"
            )
        self.classes: list[str] = classes
        self.data_config: dict[str, Any] = data_config
        self.card: dict[str, Any] = card
        self.trained_on = (
            TrainedOn.from_text(trained_on, self._path) if TRAINED_ON in inside else None
        )

    def _read_ports(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if (
            [port.name for port in inputs] != [INPUT]
            or len(outputs) != 1
            or outputs[0].name not in (LOGITS, PROBABILITIES)
        ):
            raise ArtefactError(
                f"{self._path}: was not written by arelu-tl export: "
                "other inputs or outputs than ours"
            )
        kind = inputs[0].type
        self.takes_pictures = kind == "tensor(uint8)"
        if not self.takes_pictures and kind not in _FLOATS:
            raise ArtefactError(f"{self._path}: was not written by arelu-tl export: takes {kind}")
        self._dtype = (
            np.uint8 if self.takes_pictures else np.float16 if kind == _FLOATS[1] else np.float32
        )
        self.gives_probabilities = outputs[0].name == PROBABILITIES

    def run(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        """Compute the answers (N, classes) to ``pictures``; ``takes_pictures`` tells their form.

        Raises:
            ArtefactError: onnxruntime fails, or the answers have another shape.
        """
        try:
            (answers,) = self._session.run(
                None, {INPUT: np.ascontiguousarray(pictures, dtype=self._dtype)}
            )
        except Exception as error:  # noqa: BLE001  as above
            raise ArtefactError(
                f"{self._path}: onnxruntime cannot run it: {_one_line(error)}"
            ) from None
        if answers.shape != (expected := (len(pictures), len(self.classes))):
            raise ArtefactError(
                f"{self._path}: answers with {answers.shape} numbers where {expected} are due"
            )
        return np.asarray(answers, dtype=np.float32)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"an .onnx file needs the package {name}: pip install 'arelu-tl[export]'"
        ) from None


def _providers(runtime: ModuleType, device: str | None) -> list[Any]:
    kind, _, number = (device or "cpu").partition(":")
    if kind == "cpu" and not number:
        return ["CPUExecutionProvider"]
    if kind != "cuda" or (number and not number.isdecimal()):
        raise ConfigError(f"`device` {device}: an .onnx file runs on cpu, cuda or cuda:N")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise ConfigError(
            f"`device` {device}: this onnxruntime knows the processor only: "
            "pip install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": number or "0"}), "CPUExecutionProvider"]


def _require_own_weights(onnx: ModuleType, content: bytes, path: Path) -> None:
    """Refuse a model with tensors in other files: onnxruntime would read any file that it names.

    Files of ``arelu-tl export`` hold all their tensors themselves.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # noqa: BLE001  protobuf's, which onnx does not name
        raise ArtefactError(f"{path}: not an ONNX file, or damaged: {_one_line(error)}") from None
    parts = [model.graph, *model.functions]
    if any(
        tensor.data_location == onnx.TensorProto.EXTERNAL
        for part in parts
        for tensor in _tensors(part)
    ):
        raise ArtefactError(
            f"{path}: keeps weights in another file, which arelu-tl export never does"
        )


def _tensors(part: Any) -> Iterator[Any]:
    """Yield every tensor of a graph or function, including those in its nodes and subgraphs."""
    yield from getattr(part, "initializer", ())
    for sparse in getattr(part, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in part.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
