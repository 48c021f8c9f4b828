"""A .pt2 file holds its module's bits and what it needs, and nothing of this machine."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch
from torch import nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import fold
from arelu_tl.exporting.proof import measure, prove
from arelu_tl.exporting.pt2_file import read_pt2, to_pt2
from arelu_tl.models.freeze import freeze


def test_it_answers_as_the_model_and_has_each_weight_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, bias=False),
        nn.BatchNorm2d(64),
        AReLU(0.3, 1.0),
        nn.Flatten(),
        nn.Linear(64 * 36, 5),
    )
    frozen, sites = freeze(model)
    batches = [torch.randn(n, 3, 8, 8) for n in (1, 2, 7)]
    module = capture(frozen, batches[1])
    fold(module, site_products(module, sites))
    content = to_pt2(module, batches[1], {"card": json.dumps({"a": "ä"})})
    loaded, texts = read_pt2(content, ["card"])
    assert json.loads(texts["card"]) == {"a": "ä"}
    kept = [value for _, value in sorted(loaded.state_dict().items())]
    assert all(
        any(torch.equal(value, other) for other in kept) for value in module.state_dict().values()
    )
    with torch.inference_mode():
        prove("the file", measure(model.eval(), batches), loaded)
    archive = zipfile.ZipFile(io.BytesIO(content))
    files = {info.filename: archive.read(info) for info in archive.infolist()}
    weights = [len(data) for name, data in files.items() if "/weights/weight_" in name]
    assert sorted(weights) == sorted(4 * n for n in (64 * 27, 64, 64 * 36 * 5, 5))
    (card,) = (data for name, data in files.items() if name.endswith("extra/card"))
    assert json.loads(card) == {"a": "ä"}
    for text in (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]), str(tmp_path)):
        assert not any(text.encode() in data for data in files.values())
