"""Whatever a picture path or a folder of pictures may be, each command that takes one says what is wrong in a line."""

from pathlib import Path

import pytest
from commands import run_command
from picture_files import TEXT, pictures, png, write
from PIL import Image
from tiny_onnx import write_tiny_onnx
from trained_runs import write_trained_run

# A file like others that nobody can read, whoever asks.
UNREADABLE = Path("/proc/self/mem")
ODD = {
    "empty.jpg": "empty file",
    "text.jpg": "not a picture in any known format",
    "phone.heic": "HEIC (pip install pillow-heif)",
    "gone.jpg": "No such file or directory",
    **({"unreadable.jpg": "Input/output error"} if UNREADABLE.exists() else {}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a model that needs no torch, and sound pictures with odd ones among them."""
    here = tmp_path_factory.mktemp("odd")
    write_tiny_onnx(here / "m.onnx")
    write_trained_run(here / "study", "test_resnet", size=32, names=["red", "green", "blue"])
    for number, colour in enumerate(("red", "green")):
        path = here / "pics" / colour / f"{number}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), colour).save(path)
    red = here / "pics" / "red"
    (red / "empty.jpg").write_bytes(b"")
    (red / "text.jpg").write_bytes(TEXT)
    (red / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    (red / "gone.jpg").symlink_to("nowhere.jpg")
    (red / "folder.jpg").mkdir()
    if UNREADABLE.exists():
        (red / "unreadable.jpg").symlink_to(UNREADABLE)
    return here


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "m.onnx", "pics"],
        ["predict", "m.onnx", *(f"pics/red/{name}" for name in ODD)],
        ["evaluate", "m.onnx", "pics"],
        ["check", "pics", "--follow-links"],
    ],
    ids=["predict, a folder", "predict, files", "evaluate", "check"],
)
def test_every_odd_file_is_named_and_the_others_are_not(words: list[str], place: Path) -> None:
    done = run_command(*words, cwd=place)
    assert done.returncode == 2, done.stderr
    assert "unexpected" not in done.stderr
    said = done.stdout + done.stderr
    for name, reason in ODD.items():
        assert f"red/{name}" in said, name
        assert reason in said, name
    assert "folder.jpg" not in said
    assert done.stderr.splitlines()[-1].startswith("arelu-tl: ")


@pytest.mark.parametrize("name", sorted(ODD))
@pytest.mark.parametrize("command", ["inspect", "features"])
def test_where_one_picture_is_too_few_the_odd_one_ends_the_command_in_a_line(
    command: str, name: str, place: Path, tmp_path: Path
) -> None:
    odd = place / "pics" / "red" / name
    if command == "inspect":
        folder = tmp_path / "pictures"
        folder.mkdir()
        (folder / f"0{odd.suffix}").symlink_to(odd.resolve() if odd.exists() else "nowhere")
        (folder / "1.png").symlink_to(place / "pics" / "red" / "0.png")
        words = [
            "inspect",
            "test_resnet",
            "--no-pretrained",
            "--img-size",
            "32",
            "--images",
            str(folder),
        ]
    else:
        words = ["explain", "features", str(place / "study" / "arelu-lr0.0001-s0"), str(odd)]
    done = run_command(*words, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert ODD[name] in done.stderr or "no such picture" in done.stderr
    assert done.stderr.startswith("arelu-tl: ")


def test_predict_evaluate_and_inspect_say_what_they_pass_over(place: Path, tmp_path: Path) -> None:
    root = write(
        tmp_path / "pics",
        pictures("red", "green", each=2) | {"__MACOSX/red/1.png": png(9), "red/1.txt": TEXT},
    )
    write(root, {"runs/s/study.yaml": TEXT, "runs/s/plot.png": png(8)})
    told = "passed over: 1 folder of arelu-tl's own results (PLACE); 1 hidden or system file or folder ("
    for words in (
        ["predict", place / "m.onnx", root],
        ["evaluate", place / "m.onnx", root],
        ["inspect", "test_resnet", "--no-pretrained", "--img-size", "32", "--images", root],
    ):
        done = run_command(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        there = str(root / "runs/s") if words[0] == "predict" else "runs/s"
        assert told.replace("PLACE", there) in done.stderr, done.stderr
        assert "1 other file, no picture" in done.stderr
    checked = run_command("check", root, "--allow-duplicates", cwd=tmp_path)
    assert told.replace("PLACE", "runs/s") in checked.stdout


def test_the_layout_is_one_question_for_check_finetune_sweep_and_evaluate(
    place: Path, tmp_path: Path
) -> None:
    root = write(tmp_path / "pics", pictures("red", "green", "train/red", "train/green", each=3))
    for command in ("check", "finetune", "sweep"):
        done = run_command(command, root, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "--layout split" in done.stdout + done.stderr
        assert "--layout flat" in done.stdout + done.stderr
    flat = run_command("check", root, "--layout", "flat", cwd=tmp_path)
    assert (flat.returncode, "3 classes" in flat.stdout) == (0, True), flat.stderr
    split = run_command("check", root, "--layout", "split", cwd=tmp_path)
    assert (split.returncode, "2 classes" in split.stdout) == (0, True), split.stderr
    # The model knows red and green, and no train.
    assert "6 pictures" in run_command("evaluate", place / "m.onnx", root, cwd=tmp_path).stdout
    refused = run_command("evaluate", place / "m.onnx", root, "--layout", "flat", cwd=tmp_path)
    assert (refused.returncode, "knows no class train" in refused.stderr) == (2, True)
