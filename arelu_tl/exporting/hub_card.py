"""Write the README.md of an exported model on the Hugging Face Hub: YAML metadata and Markdown."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from arelu_tl.records.card import ModelCard

if TYPE_CHECKING:
    from arelu_tl.exporting.report import ExportReport

# The license names, of those the hub knows, that pretrained weights use. The hub refuses others.
_HUB_LICENSES = frozenset({
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc",
    "mpl-2.0", "artistic-2.0", "unlicense", "wtfpl", "zlib", "ms-pl",
    "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "agpl-3.0",
    "openrail", "gemma", "other", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
})  # fmt: skip
_CLASSES_SHOWN, _LONGEST_TEXT = 100, 80
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
# Invisible characters that set the direction of the text after them.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class HubFile:
    """The uploaded export, as the README describes it.

    Attributes:
        kind: safetensors, onnx or pt2.
        name: of the file; for a safetensors folder, of the weights.
        takes_pictures: whether an ONNX file takes decoded pictures and gives probabilities.
        precision: of an ONNX file's numbers: float32, fp16, int8-dynamic or int8-static.
    """

    kind: str
    name: str
    takes_pictures: bool = False
    precision: str = "float32"


def readme(report: ExportReport, card: ModelCard, repo: str, file: HubFile) -> str:
    """Write the text of README.md.

    It holds no paths of the exporting machine. Text from elsewhere (classes, names) is escaped.

    Args:
        report: of the export.
        card: of the exported model.
        repo: USER/NAME, valid.
        file: the uploaded export.
    """
    sections = [
        f"# {escaped(repo.partition('/')[2])}",
        _what(report, card, file),
        _facts(report, card),
        "## Preprocessing\n\n" + _preprocessing(card.data_config, inside=file.takes_pictures),
        "## How to use it\n\n" + _usage(report, card, repo, file),
        f"## Classes\n\n{_classes(card, file)}",
    ]
    return f"---\n{_metadata(report, card, repo, file)}\n---\n\n" + "\n\n".join(sections) + "\n"


def escaped(text: str) -> str:
    """Escape ``text`` for one line of Markdown, cut to 80 characters, so that it is only shown."""
    shown = "".join(
        " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _DIRECTIONS else c
        for c in text
    )
    # File names that are not UTF-8 hold lone surrogates, which cannot be written.
    shown = " ".join(shown.encode("utf-8", "replace").decode().split())
    if len(shown) > _LONGEST_TEXT:
        shown = shown[: _LONGEST_TEXT - 1] + "…"
    return _PUNCTUATION.sub(r"\\\1", shown)


def _metadata(report: ExportReport, card: ModelCard, repo: str, file: HubFile) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    accuracy = _accuracy(report, card)
    result = EvalResult(
        task_type="image-classification",
        dataset_type="imagefolder",
        dataset_name="validation pictures of the training folder",
        metric_type="accuracy",
        metric_value=accuracy,
    )
    data = ModelCardData(
        base_model=_base_model(card.backbone),
        library_name="timm" if report.form == "timm" else "arelu-tl",
        metrics=None if accuracy is None else ["accuracy"],
        model_name=None if accuracy is None else repo.partition("/")[2],
        eval_results=None if accuracy is None else [result],
        pipeline_tag="image-classification",
        tags=[
            "image-classification",
            "arelu",
            "timm",
            card.architecture,
            *(["onnx"] if file.kind == "onnx" else []),
        ],
        **_license(card.license),
    )
    return data.to_yaml()


def _accuracy(report: ExportReport, card: ModelCard) -> float | None:
    return report.accuracy.after if report.accuracy is not None else card.top1


def _license(name: str | None) -> dict[str, Any]:
    known = " ".join((name or "").lower().split())
    if not known or known in ("unknown", "none"):
        return {}
    if known in _HUB_LICENSES:
        return {"license": known}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", known)[:_LONGEST_TEXT]}


def repo_problem(name: str) -> str | None:
    """Return why the hub's client rejects a repository's name; None where it accepts it."""
    from huggingface_hub.errors import HFValidationError

    # Public, but not in __all__.
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return str(error)
    return None


def _base_model(backbone: str) -> str | None:
    scheme, colon, location = backbone.partition(":")
    name = location.partition("@")[0]
    return name if colon and scheme in ("hf-hub", "hf_hub") and repo_problem(name) is None else None


def _without_folder(name: str) -> str:
    """Remove the exporting machine's folder from the name of a backbone or its weights."""
    scheme, colon, place = name.partition(":")
    return f"local folder {PurePath(place).name}" if colon and scheme == "local-dir" else name


def _what(report: ExportReport, card: ModelCard, file: HubFile) -> str:
    timm = "[timm](https://github.com/huggingface/pytorch-image-models)"
    arelu = "[AReLU](https://arxiv.org/abs/2006.13858)"
    if card.arm == "relu":
        arm = "its activations unchanged (arm relu: the baseline)"
    elif card.arm == "arelu":
        arm = f"its ReLUs replaced by {arelu} (arm arelu)"
    elif card.arm == "arelu-frozen":
        arm = (
            f"its ReLUs replaced by {arelu} that was never trained (arm arelu\\-frozen: a control)"
        )
    elif card.arm == "recalibrated":
        arm = (
            "its activations unchanged and its BatchNorm statistics estimated anew "
            "(arm recalibrated: a control)"
        )
    else:
        arm = f"its ReLUs replaced (arm {escaped(card.arm)}: a control)"
    held = {
        "safetensors": {
            "trained": (
                "The files hold it as it was trained, with whatever its activations have learnt "
                "as parameters."
            ),
            "timm": "The files hold it as plain layers, which timm alone builds.",
        }.get(
            report.form,
            "The files hold it with its activations as constants, which arelu\\-tl builds.",
        ),
        "onnx": f"{escaped(file.name)} holds it as one ONNX graph of plain operators.",
        "pt2": f"{escaped(file.name)} holds it as a program of torch\\.export.",
    }[file.kind]
    return (
        f"An image classifier: the {timm} backbone {escaped(_without_folder(card.backbone))}, "
        f"{arm}, fine-tuned on a folder of pictures with arelu-tl {escaped(card.version)}. {held}"
    )


def _facts(report: ExportReport, card: ModelCard) -> str:
    rows = [
        ("architecture (timm)", escaped(card.architecture)),
        ("arm", escaped(card.arm)),
        ("pretrained weights", escaped(_without_folder(card.weights))),
        ("classes", str(len(card.classes))),
        ("validation accuracy", _accuracy_in_words(report, card)),
    ]
    if card.license and _license(card.license):
        rows.insert(3, ("licence of the pretrained weights", escaped(card.license)))
    training = [
        f"{name} {card.training[key]}"
        for key, name in _TRAINING.items()
        if card.training.get(key) is not None
    ]
    if training:
        rows.append(("training", escaped(", ".join(training))))
    logits = [proof for proof in report.proofs if proof.answers == "logits"]
    if logits and report.accuracy is None:
        inputs, apart = (
            max(proof.inputs for proof in logits),
            max(proof.difference for proof in logits),
        )
        rows.append(
            (
                "proof",
                f"logits at most {apart:.1e} from the trained model's in float64, "
                f"on {inputs} inputs",
            )
        )
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


_TRAINING = {
    "lr": "learning rate",
    "epochs": "epochs",
    "batch_size": "batch size",
    "opt": "optimiser",
    "seed": "seed",
}


def _accuracy_in_words(report: ExportReport, card: ModelCard) -> str:
    changed = report.accuracy
    if changed is not None:
        return (
            f"{changed.after:.4f} of this file, on {changed.pictures} pictures "
            f"({changed.before:.4f} before it was put in fewer bits; "
            f"the same class on {changed.same:.1%})"
        )
    if card.top1 is None:
        return "not recorded"
    # The best of many evaluations is slightly too optimistic, so the README says how it was chosen.
    chosen = (
        ", a checkpoint that was chosen by this number"
        if card.training.get("best_step") == card.step
        else ""
    )
    return f"{card.top1:.4f} after {card.step} training steps{chosen}"


def _preprocessing(data: dict[str, Any], *, inside: bool) -> str:
    if inside:
        return (
            "Inside the file: it takes one decoded RGB picture of any size, "
            "uint8 (1, height, width, 3)."
        )
    names = {
        "input_size": "input (channels, height, width)",
        "interpolation": "interpolation",
        "crop_pct": "share kept by the crop",
        "crop_mode": "crop",
        "mean": "mean, of values 0 to 1",
        "std": "standard deviation",
    }
    return "\n".join(
        f"- {name}: {escaped(str(data[key]))}" for key, name in names.items() if key in data
    )


def _classes(card: ModelCard, file: HubFile) -> str:
    shown = [
        f"- {index}: {escaped(name)}" for index, name in enumerate(card.classes[:_CLASSES_SHOWN])
    ]
    if (more := len(card.classes) - len(shown)) > 0:
        where = (
            "`label_names` of `config.json`"
            if file.kind == "safetensors"
            else "`classes` of the file's metadata"
        )
        shown += ["", f"and {more} more, in {where}."]
    return "\n".join(shown)


def _usage(report: ExportReport, card: ModelCard, repo: str, file: HubFile) -> str:
    if file.kind == "onnx":
        return _onnx_usage(card, repo, file)
    if file.kind == "pt2":
        return _code(
            "import torch",
            "from huggingface_hub import hf_hub_download",
            "",
            'inside = {"classes": "", "preprocessing": ""}  # filled with JSON',
            f"path = hf_hub_download({repo!r}, {file.name!r})",
            "model = torch.export.load(path, extra_files=inside).module()",
            (
                f"logits = model(torch.zeros(1, *{list(card.data_config['input_size'])!r}))"
                "  # preprocessed pictures"
            ),
        )
    ours = _code(
        "import arelu_tl",
        "from huggingface_hub import snapshot_download",
        "",
        (
            f"model, card = arelu_tl.load_model(snapshot_download({repo!r}))"
            "  # card.classes[i] names logit i"
        ),
    )
    if report.form == "timm":
        timm = _code(
            "import timm", "", f'model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()'
        )
        return (
            f"{timm}\n\nOr with arelu-tl, which checks the weights against `config.json`:\n\n{ours}"
        )
    reason = (
        f"\n\ntimm alone cannot build it: {escaped(report.unlike_timm)}."
        if report.unlike_timm
        else ""
    )
    return f"With arelu-tl:\n\n{ours}{reason}"


def _onnx_usage(card: ModelCard, repo: str, file: HubFile) -> str:
    opening = (
        "import json",
        "import numpy as np, onnxruntime",
        "from huggingface_hub import hf_hub_download",
        "from PIL import Image, ImageOps",
        "",
        f"session = onnxruntime.InferenceSession(hf_hub_download({repo!r}, {file.name!r}))",
        'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        'picture = ImageOps.exif_transpose(Image.open("PICTURE")).convert("RGB")',
    )
    if file.takes_pictures:
        code = _code(
            *opening,
            '(probabilities,) = session.run(None, {"pictures": np.asarray(picture)[None]})',
            "print(classes[int(probabilities.argmax())])",
        )
    elif card.data_config.get("crop_mode", "center") == "center":
        code = _code(
            *opening,
            'how = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])',
            '(w, h), (_, height, width) = picture.size, how["input_size"]',
            "# before the middle is cut out",
            'tall, wide = int(height / how["crop_pct"]), int(width / how["crop_pct"])',
            "if tall == wide:  # the shorter side becomes that, the longer is cut to whole pixels",
            "    w, h = (tall if a <= b else int(tall * a / b) for a, b in ((w, h), (h, w)))",
            "else:  # the first side that fits becomes its own, the other is rounded",
            "    ratio = min(h / tall, w / wide)",
            "    w, h = max(1, round(w / ratio)), max(1, round(h / ratio))",
            'picture = picture.resize((w, h), Image.Resampling[how["interpolation"].upper()])',
            "left, top = round((w - width) / 2), round((h - height) / 2)",
            (
                "pixels = np.asarray(picture.crop((left, top, left + width, top + height)), "
                "np.float32) / 255"
            ),
            'pixels = (pixels - np.float32(how["mean"])) / np.float32(how["std"])',
            '(logits,) = session.run(None, {"pictures": pixels.transpose(2, 0, 1)[None]})',
            "print(classes[int(logits.argmax())])",
        )
    else:
        code = _code(
            *opening[:3], "", *opening[5:7],
            f"pixels = np.zeros((1, *{list(card.data_config['input_size'])!r}), np.float32)"
            "  # preprocessed as above",
            '(logits,) = session.run(None, {"pictures": pixels})',
        )  # fmt: skip
    bits = "" if file.precision == "float32" else f"Numbers inside: {escaped(file.precision)}.\n\n"
    return (
        f"{bits}{code}\n\n"
        "Or with arelu-tl: `arelu-tl predict FILE PICTURE`, on the downloaded file."
    )


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
