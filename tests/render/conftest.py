"""A study whose class names attack the page, with real pictures, and its page."""

import json

import numpy as np
import pytest
from PIL import Image
from report_study import NASTY, PICTURES, Study, picture_path, write_grid
from run_folders import write_run

from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.records.config import check_config, dump_yaml
from arelu_tl.records.runs import find_runs
from arelu_tl.render.report.report import write_report_files


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("render")
    pictures = root / "pictures"
    stream = np.random.default_rng(0)
    for number in range(PICTURES):
        path = pictures / picture_path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    folder = root / "study"
    write_grid(folder, ("relu", "arelu", "leaky"), (1e-4, 1e-3), (0, 1), data=pictures)
    write_run(folder, "arelu", [0.1, 0.2], lr=1e-4, seed=7, data=pictures)  # no partner
    write_run(folder, "arelu", [0.1], lr=1e-3, seed=8, status="failed", data=pictures)
    (folder / "study.yaml").write_text(
        dump_yaml(check_config({"data": str(pictures)})), encoding="utf-8"
    )
    told = {
        "classes": list(NASTY),
        "layout": "split",
        "counts": {split: dict.fromkeys(NASTY, 10) for split in ("train", "val")},
        "fingerprint": "d" * 64,
        "rejected": [{"path": "train/x/<b>.png", "reason": "truncated"}],
        "ignored_files": 3,
        "duplicates_across_splits": [["train/x/1.png", "val/x/1.png"]],
    }
    (folder / "dataset.json").write_text(json.dumps(told), encoding="utf-8")
    for run in folder.glob("*-s*"):
        (run / "environment.json").write_text(
            json.dumps({"python": "3.11", "packages": {"torch": "2.10"}}), encoding="utf-8"
        )
    runs = find_runs(folder)
    comparison = compare_runs(runs)
    write_report_files(comparison, runs, root, title="a model on <i>pictures</i> & $x$")
    return Study(folder, runs, comparison, root / "report.html")
