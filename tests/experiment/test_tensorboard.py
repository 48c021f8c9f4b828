"""--tensorboard: the event files tell what metrics.jsonl and summary.json tell, once, also after a break."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import GIVEN, run_code
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import arelu_tl
from arelu_tl.errors import ConfigError, Interrupted, StorageError
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.tensorboard import TensorBoardLog
from arelu_tl.records.storage import read_rows

TINY: dict[str, Any] = {
    "model": "test_resnet",
    "pretrained": False,
    **GIVEN,
    "img_size": 32,
    "batch_size": 8,
    "epochs": 3,
    "workers": 0,
}
ALL_KINDS = {"scalars": 0, "histograms": 0, "tensors": 0}  # 0: every one, no sample


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder()
    return folder


def config(pictures: Path, place: Path, **settings: Any) -> arelu_tl.FinetuneConfig:
    told = {
        **TINY,
        "data": pictures,
        "output": place,
        "name": "study",
        "device": "cpu",
        "tensorboard": True,
        **settings,
    }
    return arelu_tl.FinetuneConfig(**told)


def read(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance=ALL_KINDS)
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def near(pairs: list[tuple[int, float]]) -> Any:
    """The pairs of step and value, of which TensorBoard keeps 32 bits."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in pairs]


def text(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def check_against_rows(run: Path) -> None:
    """Every scalar and histogram is that of a row, and every row is there."""
    events, rows = read(run), read_rows(run / "metrics.jsonl")
    for split in ("train", "val"):
        for name in ("loss", "top1"):
            wanted = [(row["step"], row[name]) for row in rows if row["split"] == split]
            assert scalars(events, f"{name}/{split}") == near(wanted)
    assert scalars(events, "lr") == near(list({row["step"]: row["lr"] for row in rows}.items()))
    told = [row for row in rows if "sites" in row]
    for at, name in enumerate(("alpha", "beta")):
        for site in told[0]["sites"] if told else ():
            assert scalars(events, f"{name}/{site}") == near(
                [(row["step"], row["sites"][site][at]) for row in told]
            )
        for event, row in zip(events.Histograms(name) if told else (), told, strict=True):
            values = [pair[at] for pair in row["sites"].values()]
            assert event.step == row["step"]
            assert event.histogram_value.num == len(values)
            assert event.histogram_value.sum == pytest.approx(math.fsum(values))
            assert (event.histogram_value.min, event.histogram_value.max) == pytest.approx(
                (min(values), max(values))
            )


def test_the_events_are_the_rows_and_the_end_of_each_run(pictures: Path, tmp_path: Path) -> None:
    study = finetune(config(pictures, tmp_path, eval_every=2))
    tags = {}
    for run in study.runs:
        check_against_rows(run.path)
        events = read(run.path)
        tags[run.config.arm] = set(events.Tags()["scalars"])
        summary = text(events, "summary")
        assert f"| arm | {run.config.arm} |" in summary
        assert "| status | finished |" in summary
        steps = run.summary["steps"]
        assert scalars(events, "summary/aulc") == near([(steps, run.summary["aulc"])])
        begun = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        settings = HParamsPluginData.FromString(begun).session_start_info.hparams
        assert {key: value.string_value or value.number_value for key, value in settings.items()} == {
            "arm": run.config.arm, "lr": run.config.lr, "seed": 0,
        }  # fmt: skip
        assert not [path for path in (run.path / "tensorboard").iterdir() if path.is_dir()]
    curves = {"loss/val", "loss/train", "top1/val", "top1/train", "lr"}
    assert curves <= tags["relu"] & tags["arelu"]
    assert not [tag for tag in tags["relu"] if tag.startswith(("alpha", "beta"))]
    run = next(run for run in study.runs if run.config.arm == "arelu")
    assert run.surgery is not None
    drift = run.surgery["drift"]["relative"]
    assert scalars(read(run.path), "summary/drift") == near([(run.summary["steps"], drift)])
    assert "| replaced | 12 |" in text(read(run.path), "surgery")
    assert str(drift) in text(read(run.path), "surgery")
    assert "surgery/text_summary" not in read(study.runs[-1].path).Tags()["tensors"]


class Stopping(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def progress(
        self, arm: str, step: int, loss: float, top1: float, images_per_second: float
    ) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def after_a_signal(run: Path) -> None:
    """Nothing more happened to the log."""


def after_a_crash(run: Path) -> None:
    """The run had gone on beyond its last checkpoint, which no one will remember."""
    log = TensorBoardLog(run / "tensorboard", None, resumed_at=99)
    for step in (5, 6, 7):
        log.row(
            {
                "step": step,
                "split": "val",
                "loss": 9.0,
                "top1": 0.0,
                "lr": 9.0,
                "sites": {"elsewhere": [9.0, 9.0]},
            }
        )
    log.close()


@pytest.mark.parametrize("happened", [after_a_signal, after_a_crash])
def test_a_resumed_run_has_no_step_twice(
    pictures: Path, tmp_path: Path, happened: Callable[[Path], None]
) -> None:
    with pytest.raises(Interrupted):
        finetune(config(pictures, tmp_path, baseline=False, eval_every=1), observer=Stopping(4))
    run = tmp_path / "study" / "arelu-lr0.0001-s0"
    happened(run)
    resume_study(tmp_path / "study")
    check_against_rows(run)
    events = read(run)
    assert [step for step, _ in scalars(events, "loss/val")] == list(range(10))
    assert "init" in text(events, "surgery")
    assert not any("elsewhere" in tag and events.Scalars(tag) for tag in events.Tags()["scalars"])


def test_a_run_that_begins_anew_hides_what_its_first_start_logged(tmp_path: Path) -> None:
    row = {"split": "val", "loss": 1.0, "top1": 0.5, "lr": 0.1}
    for steps in ([0, 1, 2, 3], [0, 1]):
        log = TensorBoardLog(tmp_path / "tensorboard", None)
        for step in steps:
            log.row({**row, "step": step, "loss": float(len(steps))})
        log.close()
    assert scalars(read(tmp_path), "loss/val") == [(0, 2.0), (1, 2.0)]


def test_a_row_is_on_disk_at_once(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "tensorboard", None)
    log.row({"step": 0, "split": "val", "loss": 1.0, "top1": 0.5, "lr": 0.1})
    assert scalars(read(tmp_path), "loss/val") == [(0, 1.0)]
    log.close()


def test_a_folder_that_cannot_be_written_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(StorageError, match="tensorboard"):
        TensorBoardLog(tmp_path / "tensorboard", None)


def test_a_disk_that_fills_up_is_a_storage_error(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from pathlib import Path
from arelu_tl.errors import StorageError
from arelu_tl.experiment.tensorboard import TensorBoardLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = TensorBoardLog(Path({str(tmp_path / "tensorboard")!r}), None)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    for step in range(100):
        log.row({{"step": step, "split": "val", "loss": 1.0, "top1": 0.5, "lr": 0.1}})
except StorageError as error:
    print(error)
"""
    told = run_code(code)
    assert told.stdout == f"cannot write {tmp_path / 'tensorboard'}: File too large\n"


def test_without_the_option_there_is_no_log(pictures: Path, tmp_path: Path) -> None:
    study = finetune(config(pictures, tmp_path, baseline=False, tensorboard=False, epochs=1))
    assert not (study.runs[0].path / "tensorboard").exists()


def test_without_the_package_it_is_told_before_a_folder_is_made(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'arelu-tl\[tensorboard\]'") as caught:
        finetune(config(pictures, tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_a_pair_may_differ_in_it(pictures: Path, tmp_path: Path) -> None:
    runs = [
        finetune(config(pictures, tmp_path, arm=arm, tensorboard=logged, baseline=False, epochs=1))
        .runs[0]
        .path
        for arm, logged in (("relu", True), ("arelu", False))
    ]
    arelu_tl.compare(runs)


def test_a_new_log_hides_nothing_and_one_that_is_begun_anew_what_was_there(tmp_path: Path) -> None:
    """TensorBoard may read the summary's file before the rows', if both are of one second."""
    hidden = []
    for _ in range(2):
        log = TensorBoardLog(tmp_path / "log", None)
        log.close()
        files = sorted((tmp_path / "log").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        events = list(EventFileLoader(str(files[-1])).Load())
        hidden.append([event.step for event in events if event.HasField("session_log")])
    assert hidden == [[], [0]]
