"""What strangers hand over (weights, runs, settings, names) is data: it is refused or shown, and never acted on."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import ENVIRONMENT, ONE_EPOCH, run_code, run_command
from PIL import Image
from safetensors.torch import save_file

from arelu_tl.records.csv_table import read_table
from arelu_tl.render.text import visible

TRACE = "the payload ran"


class Payload:
    """Unpickled without care, it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


def write_pictures(root: Path, names: list[str]) -> Path:
    stream = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                squares = stream.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                file = root / split / name / f"{number} {name}.png"
                Image.fromarray(squares).resize((40, 40)).save(file)
    return root


# Files that could run something


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a finished study of them."""
    here = tmp_path_factory.mktemp("place")
    write_pictures(here / "data", ["a", "b"])
    done = run_command("finetune", "data", *ONE_EPOCH, "--no-baseline", "--name", "study", cwd=here)
    assert done.returncode == 0, done.stderr
    return here


def copied_run(place: Path, there: Path) -> Path:
    """The run of a copy of the study, as if it had been interrupted."""
    study = shutil.copytree(place / "runs" / "study", there / "runs" / "study")
    (run,) = (path.parent for path in study.glob("*/summary.json"))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    return run


def evil_weights(place: Path, there: Path) -> list[str | Path]:
    weights = timm.create_model("test_resnet").state_dict()
    torch.save({"state_dict": weights, "extra": Payload(there / TRACE)}, there / "w.pth")
    settings = [word for word in ONE_EPOCH if word != "--no-pretrained"]
    return ["finetune", place / "data", *settings, "--pretrained-path", "w.pth"]


def evil_pickle(place: Path, there: Path) -> list[str | Path]:
    (there / "w.bin").write_bytes(pickle.dumps(Payload(there / TRACE)))
    settings = [word for word in ONE_EPOCH if word != "--no-pretrained"]
    return ["finetune", place / "data", *settings, "--pretrained-path", "w.bin"]


def evil_state(place: Path, there: Path) -> list[str | Path]:
    run = copied_run(place, there)
    for checkpoint in (run / "checkpoints").iterdir():
        torch.save({"loop": Payload(there / TRACE)}, checkpoint / "state.pt")
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["sha256"]["state.pt"] = hashlib.sha256(
            (checkpoint / "state.pt").read_bytes()
        ).hexdigest()
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return ["finetune", "--resume", run.parent]


def evil_model(command: str, ending: str) -> Callable[[Path, Path], list[str | Path]]:
    def make(place: Path, there: Path) -> list[str | Path]:
        torch.save(Payload(there / TRACE), there / f"model{ending}")
        more: dict[str, list[str | Path]] = {"export": ["--format", "safetensors"]}
        return [command, f"model{ending}", *more.get(command, [place / "data"])]

    return make


def evil_best(place: Path, there: Path) -> list[str | Path]:
    run = copied_run(place, there)
    torch.save(Payload(there / TRACE), run / "best.safetensors")
    return ["predict", run, place / "data"]


EVIL = {
    "weights": evil_weights,
    "weights, plain pickle": evil_pickle,
    "a checkpoint's state": evil_state,
    "a run's weights": evil_best,
    **{
        f"{c} {e}": evil_model(c, e)
        for c in ("predict", "evaluate", "export")
        for e in (".pt2", ".ckpt", ".pt", ".pkl")
    },
}


@pytest.mark.parametrize("kind", EVIL)
def test_what_could_run_something_is_refused_and_does_not(
    kind: str, place: Path, tmp_path: Path
) -> None:
    done = run_command(*EVIL[kind](place, tmp_path), cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    *said, last = done.stderr.splitlines()
    assert last.startswith("arelu-tl: ")
    assert "Traceback" not in done.stderr
    assert not any("unexpected" in line for line in said)
    assert not (tmp_path / TRACE).exists()


def test_the_payload_would_run_if_it_were_let(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / TRACE), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False).close()
    assert (tmp_path / TRACE).exists()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system [touch RAN]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_yaml_makes_no_objects(tag: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"model: {tag}\n")
    for command in ("finetune", "check"):
        done = run_command(command, place / "data", "--config", "c.yaml", cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


# Paths that leave their folder


@pytest.mark.parametrize(
    "outside", ["../secret.png", "/etc/hostname", "train/../../secret.png", "a\0b"]
)
def test_a_split_that_names_files_elsewhere_is_refused(
    outside: str, place: Path, tmp_path: Path
) -> None:
    run = copied_run(place, tmp_path)
    split = run.parent / "split.csv"
    header, first, *rest = split.read_text().splitlines()
    path, label, _ = first.split(",")
    told = outside.replace("\0", "\\x00")
    split.write_text("\n".join([header, first, f"{told},{label},val", *rest]) + "\n")
    (place / "secret.png").write_bytes((place / "data" / path).read_bytes())
    done = run_command("export", run, "--format", "onnx", "--output", "m.onnx", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "no path inside the folder of pictures" in done.stderr
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    "setting",
    ["train_split: ..", "val_split: .", "val_split: ../x", "train_split: /etc", "name: ../x", "name: /tmp/x", 'name: "a\\0"',
     'output: "a\\0b"', 'data: "a\\0b"', 'train_split: "a\\0b"', 'pretrained_path: "a\\0b"'],
)  # fmt: skip
def test_settings_cannot_leave_the_folders_that_they_are_in(
    setting: str, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(setting + "\n")
    data = [] if setting.startswith("data") else [place / "data"]
    done = run_command("finetune", *data, "--config", "c.yaml", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


# Names that speak to terminals, spreadsheets and browsers

NASTY = [
    "<script>alert(1)<",
    "[bold]x[",
    "=cmd()",
    "esc\x1b[31m",
    "new\nline",
    "bell\a😀",
    "x..",
    os.fsdecode(b"caf\xe9"),
    "-rf",
    "a,b\"c'",
    "[red]:smile:",
    "[link=x]y",
    "\u202edlrow",
    "sixty letters " * 4 + "日本",
]
PLACE = "runs [v1] :smile:"
HARMLESS = {"\n"}


def acts(text: str) -> set[str]:
    """What in a text a terminal would act on, or show as something else."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c not in HARMLESS}


# In front of a command: whatever it asks of the network is said and refused. Sockets between processes of this machine are none.
OFFLINE = """
import socket, sys
import huggingface_hub.constants

def refuse(*arguments, **named):
    print("NETWORK", arguments, file=sys.stderr)
    raise OSError("no network here")

connect = socket.socket.connect
socket.socket.connect = lambda self, address: connect(self, address) if self.family == socket.AF_UNIX else refuse(address)
socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
huggingface_hub.constants.HF_HUB_OFFLINE = False
from arelu_tl.cli.app import main

main()
"""


def test_nasty_names_are_harmless_from_the_first_look_to_the_last_file_and_the_network_is_not_asked(
    tmp_path: Path,
) -> None:
    try:
        data = write_pictures(tmp_path / "data", NASTY)
    except OSError:
        pytest.skip("this file system does not take the names")
    # With weights at hand.
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    settings = {
        "model": "test_resnet",
        "pretrained_path": "weights.safetensors",
        "img_size": 32,
        "batch_size": 8,
        "epochs": 1,
        "workers": 0,
    }
    (tmp_path / "study.yaml").write_text(json.dumps(settings))
    training = [
        "finetune",
        data,
        "--config",
        "study.yaml",
        "--output",
        PLACE,
        "--name",
        "study",
        "--lr",
        "1e-3",
    ]
    study = tmp_path / PLACE / "study"
    run = study / "arelu-lr0.001-s0"
    environment = {
        key: value
        for key, value in {**os.environ, **ENVIRONMENT}.items()
        if key != "HF_HUB_OFFLINE"
    }
    said = {}
    for words in (
        ["check", data, "--output", "checked"],
        training,
        ["compare", study],
        ["export", run, "--format", "safetensors", "--output", "folder"],
        ["export", run, "--format", "onnx", "--output", "m.onnx"],
        ["predict", run, data / "val"],
        ["predict", "m.onnx", data / "val", "--csv"],
        ["evaluate", "folder", data, "--output", "evaluated"],
        ["explain", "gradients", run, "--batches", "1"],
        ["explain", "activations", run],
        ["explain", "features", run, data / "val" / NASTY[1] / f"0 {NASTY[1]}.png"],
        ["inspect", "test_resnet", "--no-pretrained", "--plot", tmp_path / "[red]sites.png"],
        ["sweep", data, *ONE_EPOCH, "--output", PLACE, "--name", "wider", "--arms", "arelu"],
    ):
        done = run_code(OFFLINE, *words, cwd=tmp_path, env=environment)
        assert done.returncode == 0, (words, done.stderr)
        assert "NETWORK" not in done.stderr, (words, done.stderr)
        assert not acts(done.stdout), words
        assert not acts(done.stderr), words
        said[" ".join(map(str, words[: 1 + (words[0] == "explain")]))] = done.stdout
    # Not taken for markup, and a pipe gets all of it.
    for name in NASTY:
        assert all(visible(name) in said[command] for command in ("check", "evaluate")), name
    assert f"report: {PLACE}/study/convergence.png" in said["finetune"]
    assert f"{PLACE}/wider: " in said["sweep"]
    assert f"figure: {tmp_path}/[red]sites.png" in said["inspect"]
    for command in ("gradients", "activations"):
        assert f"wrote {run}/explain/{command}.png" in said[f"explain {command}"]
    assert "figure: " + visible(study / f"features-0 {NASTY[1]}-") in said["explain features"]
    # What is printed to be typed next means what is there.
    typed = [
        line for line in said["finetune"].partition("next:\n")[2].splitlines() if " PICTURE" in line
    ]
    shell = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {typed[0]}"], capture_output=True, text=True, check=True
    )
    program, command, model, _ = shell.stdout.rstrip("\0").split("\0")
    # Of whichever run was best.
    assert (program, command, (tmp_path / model).resolve().parent) == (
        "arelu-tl",
        "predict",
        study.resolve(),
    )
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert not acts(page)
    tables = list(tmp_path.rglob("*.csv"))
    assert {"split.csv", "predictions.csv", "rejected.csv", "duplicates.csv"} <= {
        path.name for path in tables
    }
    for table in tables:
        text = table.read_text(encoding="utf-8")
        assert not acts(text), table
        cells = [cell for line in text.splitlines() for cell in line.split(",")]
        assert not [
            cell
            for cell in cells
            if cell.startswith(("=", "+", "@", "-")) and not cell[1:2].isdigit()
        ], table
    assert {row["label"] for row in read_table(study / "split.csv")} == set(NASTY)
    inside = {path.name for path in tmp_path.iterdir()}
    assert inside == {
        "data", "weights.safetensors", "study.yaml", "checked", PLACE, "folder", "m.onnx", "evaluated", "[red]sites.png",
    }  # fmt: skip


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_an_error_names_what_was_asked_for_as_it_is_called(name: str, tmp_path: Path) -> None:
    path = Path("nowhere", name)
    for words in (
        ["check", path],
        ["evaluate", path, path],
        ["compare", path],
        ["finetune", "--config", path],
        [f"no{name}"],
    ):
        done = run_command(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        (line,) = done.stderr.splitlines()
        assert not acts(line)
        assert len(words) < 2 or " ".join(map(visible, name.split())) in line


def test_the_network_would_be_asked_if_there_were_no_weights(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", ["a", "b"])
    environment = {
        key: value
        for key, value in {**os.environ, **ENVIRONMENT}.items()
        if key != "HF_HUB_OFFLINE"
    }
    words = ["finetune", "data", "--model", "resnet18", "--output", "runs", "-j", "0"]
    done = run_code(OFFLINE, *words, cwd=tmp_path, env={**environment, "HF_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert "NETWORK" in done.stderr
