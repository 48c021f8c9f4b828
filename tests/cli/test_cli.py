"""The command line as a user meets it: real processes, exact exit codes, one line for each error.

``run_alone`` starts an interpreter, ``run_command`` forks one that has torch: what is compared is told by both.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ONE_EPOCH, run_alone, run_command, start_command

from arelu_tl.cli.app import COMMANDS, _summary

FAST = [*ONE_EPOCH, "--epochs", "2"]


def rows_without_seconds(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder()
    return folder


@pytest.fixture(scope="module")
def study(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    place = tmp_path_factory.mktemp("study")
    done = run_alone("finetune", pictures, *FAST, "--lr", "1e-3", "--name", "first", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "runs" / "first", done


ARELU, RELU = "arelu-lr0.001-s0", "relu-lr0.001-s0"


def test_finetune_leaves_exactly_the_promised_files(study: tuple[Path, Any]) -> None:
    path, _ = study
    top = {"study.yaml", "dataset.json", "split.csv", "comparison.json", "report.html", ARELU, RELU}
    top |= {"trained-on.bin", "convergence.png", "convergence.svg"}
    assert {p.name for p in path.iterdir()} == top
    common = {
        "run.yaml", "environment.json", "choices.json", "metrics.jsonl", "results.csv", "summary.json", "predictions.csv",
        "checkpoints", "best.safetensors",
    }  # fmt: skip
    assert {p.name for p in (path / RELU).iterdir()} == common
    assert {p.name for p in (path / ARELU).iterdir()} == common | {"surgery.json"}
    for arm in (RELU, ARELU):
        steps = list((path / arm / "checkpoints").iterdir())
        assert {p.name for p in steps} == {"step-3", "step-6"}
        assert all(
            {f.name for f in p.iterdir()} == {"model.safetensors", "state.pt", "manifest.json"}
            for p in steps
        )


def test_summary_and_metrics_have_the_promised_keys(study: tuple[Path, Any]) -> None:
    path, _ = study
    summary = json.loads((path / ARELU / "summary.json").read_text())
    promised = {
        "arm", "lr", "seed", "steps", "final_top1", "best_top1", "best_step", "aulc", "seconds", "images_per_second",
        "peak_memory_bytes", "status",
    }  # fmt: skip
    assert promised <= summary.keys()
    assert (summary["arm"], summary["lr"], summary["seed"], summary["steps"]) == (
        "arelu",
        1e-3,
        0,
        6,
    )
    assert summary["status"] == "finished"
    for row in rows_without_seconds(path / ARELU):
        assert {"step", "epoch", "split", "loss", "top1", "lr"} <= row.keys()
        assert ("sites" in row) == (row["split"] == "val")
    assert all("sites" not in row for row in rows_without_seconds(path / RELU))


def test_both_arms_start_and_see_the_same(study: tuple[Path, Any]) -> None:
    path, done = study
    pairings = [
        json.loads((path / arm / "summary.json").read_text())["pairing"] for arm in (ARELU, RELU)
    ]
    assert pairings[0] == pairings[1]
    assert len(pairings[0]["epochs"]) == 2
    assert pairings[0]["head_init"][:12] in done.stdout


def test_report_names_both_arms_the_verdict_and_the_next_commands(study: tuple[Path, Any]) -> None:
    path, done = study
    said = " ".join(done.stdout.split())
    for word in (
        "relu",
        "arelu",
        "AULC",
        "At learning rate 0.001",
        "Another seed may say otherwise",
        "next:",
        "arelu-tl predict",
    ):
        assert word in said, word
    assert "epoch 2/2" in done.stderr
    comparison = json.loads((path / "comparison.json").read_text())
    assert comparison["rates"][0]["verdict"] in (
        "ahead in this run",
        "behind in this run",
        "no detectable difference",
    )
    assert comparison["rates"][0]["one_seed"]
    assert comparison["rates"][0]["pairs"][0]["mcnemar_p"] is not None
    assert (path / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_same_command_and_seed_give_the_same_metrics(
    study: tuple[Path, Any], pictures: Path, tmp_path: Path
) -> None:
    again = run_command("finetune", pictures, *FAST, "--lr", "1e-3", cwd=tmp_path)
    assert again.returncode == 0
    for arm in (ARELU, RELU):
        ours, theirs = study[0] / arm, tmp_path / "runs" / "study-1" / arm
        assert rows_without_seconds(ours) == rows_without_seconds(theirs)
        assert (ours / "best.safetensors").read_bytes() == (
            theirs / "best.safetensors"
        ).read_bytes()


def test_resolved_configuration_repeats_the_study(study: tuple[Path, Any], tmp_path: Path) -> None:
    again = run_command(
        "finetune",
        "--config",
        study[0] / "study.yaml",
        "--output",
        tmp_path,
        "--no-baseline",
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert rows_without_seconds(tmp_path / "first" / ARELU) == rows_without_seconds(
        study[0] / ARELU
    )
    assert not (tmp_path / "first" / RELU).exists()


def test_interrupt_saves_and_resume_ends_as_if_nothing_had_been(
    study: tuple[Path, Any], pictures: Path, tmp_path: Path
) -> None:
    process = start_command(
        "finetune", pictures, *FAST, "--lr", "1e-3", "--name", "broken", cwd=tmp_path
    )
    metrics = tmp_path / "runs" / "broken" / RELU / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        assert not process.ended()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    done = process.end(120)
    assert done.returncode == 130, done.stderr
    assert "arelu-tl finetune --resume runs/broken" in done.stderr.splitlines()[-1]
    assert json.loads((metrics.parent / "summary.json").read_text())["status"] == "interrupted"
    resumed = run_command("finetune", "--resume", "runs/broken", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for arm in (ARELU, RELU):
        assert rows_without_seconds(tmp_path / "runs" / "broken" / arm) == rows_without_seconds(
            study[0] / arm
        )
        ours = (tmp_path / "runs" / "broken" / arm / "best.safetensors").read_bytes()
        assert ours == (study[0] / arm / "best.safetensors").read_bytes()


def test_resume_refuses_changed_pictures_and_other_settings(
    study: tuple[Path, Any], make_folder: Any, tmp_path: Path
) -> None:
    mine: Path = make_folder(train=4, val=2)
    assert (
        run_command(
            "finetune", mine, *FAST, "--no-baseline", "--name", "x", cwd=tmp_path
        ).returncode
        == 0
    )
    other = run_command("finetune", "--resume", "runs/x", "--lr", "1", cwd=tmp_path)
    assert (other.returncode, "leave out: lr" in other.stderr) == (2, True)
    next(mine.rglob("*.png")).unlink()
    changed = run_command("finetune", "--resume", "runs/x", cwd=tmp_path)
    assert (changed.returncode, "pictures are not those" in changed.stderr) == (2, True)


def test_runs_inside_the_folder_of_pictures_are_no_class(make_folder: Any) -> None:
    root: Path = make_folder(train=6, val=1) / "train"
    for number in (1, 2):
        done = run_command("finetune", ".", *FAST, "--no-baseline", "--lr", "1e-3", cwd=root)
        assert done.returncode == 0, done.stderr
        dataset = json.loads((root / "runs" / f"study-{number}" / "dataset.json").read_text())
        assert dataset["classes"] == ["class 0", "class 1", "class 2"]


def test_a_study_stopped_before_its_first_run_can_be_resumed_from_anywhere_on_pictures_that_have_moved(
    study: tuple[Path, Any], pictures: Path, tmp_path: Path
) -> None:
    for name in ("study.yaml", "dataset.json", "split.csv"):
        (tmp_path / "early").mkdir(exist_ok=True)
        (tmp_path / "early" / name).write_bytes((study[0] / name).read_bytes())
    shutil.copytree(pictures, tmp_path / "moved")
    early = tmp_path / "early"
    twice = run_command("finetune", "moved", "--resume", early, "--data", "moved", cwd=tmp_path)
    assert (twice.returncode, "named twice: moved and moved" in twice.stderr) == (2, True)
    resumed = run_command("finetune", "--resume", early, "--data", "moved", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert rows_without_seconds(tmp_path / "early" / ARELU) == rows_without_seconds(
        study[0] / ARELU
    )


def test_compare_reads_the_study_and_speaks_json(study: tuple[Path, Any]) -> None:
    before = (study[0] / "comparison.json").read_bytes()
    told = run_command("compare", "runs/first", "--json", cwd=study[0].parents[1])
    assert told.returncode == 0, told.stderr
    assert (
        json.loads(told.stdout)
        == json.loads((study[0] / "comparison.json").read_text())
        == json.loads(before)
    )
    pair = run_command(
        "compare", study[0] / ARELU, study[0] / RELU, "--target", "0.5", cwd=study[0]
    )
    assert "target 50.0%" in pair.stdout
    assert "--output" in pair.stderr
    alone = run_command("compare", study[0] / ARELU, cwd=study[0])
    assert (alone.returncode, "without a baseline" in alone.stderr) == (2, True)


def test_inspect_lists_every_site_and_its_totals(tmp_path: Path, pictures: Path) -> None:
    told = run_command("inspect", "resnet18", "--no-pretrained", "--json", cwd=tmp_path)
    report = json.loads(told.stdout)
    assert len(report["sites"]) == 17  # the stem's, and two in each of eight residual blocks
    assert report["parameters_added"] == 2 * 17
    assert {site["kind"] for site in report["sites"]} == {"module"}
    assert (
        report["cost"]["arelu_flops"]
        == 3 * report["cost"]["relu_flops"]
        < report["cost"]["model_flops"]
    )


def test_inspect_measures_every_init_on_pictures_and_draws(tmp_path: Path, pictures: Path) -> None:
    told = run_command(
        "inspect", "test_resnet", "--no-pretrained", "--img-size", "32", "--images", pictures, "--plot", "sites.png", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    drifts = {
        init: measured["drift"]["relative"] for init, measured in report["drift_by_init"].items()
    }
    assert list(drifts) == ["calibrated", "paper", "near-relu"]
    assert drifts["calibrated"] <= report["drift_budget"] < drifts["paper"]
    assert all(0 <= site["negative_share"] < 1 for site in report["sites"])
    assert (tmp_path / "sites.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_shows_functional_calls_and_what_stays(tmp_path: Path) -> None:
    told = run_command(
        "inspect", "mobilevitv2_050", "--no-pretrained", "--exclude", "stages.4*", cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr
    assert "6 of 9 sites would be replaced (9 functional, 3 excluded)" in told.stdout


def test_the_list_of_supported_architectures_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom arelu_tl.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'timm', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    asked = ["inspect", "--list-supported", "mobilevitv2_*", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["functional"] for row in json.loads(done.stdout)["architectures"]] == [9] * 7
    table = run_command(
        "inspect", "--list-supported", "resnet50.a1_in1k", cwd=tmp_path, COLUMNS="80"
    )
    assert "resnet50 " in table.stdout
    nothing = run_command("inspect", "--list-supported", "vit_tiny_patch16_224", cwd=tmp_path)
    assert (nothing.returncode, "no architecture" in nothing.stderr) == (2, True)


BAD: dict[str, tuple[list[str], int, str]] = {
    "missing folder": (["finetune", "nowhere"], 2, "no such folder"),
    "empty folder": (["finetune", "empty"], 2, "no pictures"),
    "one class": (["finetune", "one"], 2, "only one class"),
    "no readable picture": (["finetune", "rotten"], 2, "cannot be decoded"),
    "no model to inspect": (["inspect"], 2, "name a MODEL"),
    "sweep: a cell twice": (["sweep", "good", "--seeds", "1,1"], 2, "seeds names a value twice"),
    "sweep: no number": (["sweep", "good", "--lrs", "1e-4,fast"], 2, "'fast'"),
    "sweep: unknown arm": (["sweep", "good", "--arms", "relu,swoosh"], 2, "'swoosh'"),
    "sweep: no duration": (["sweep", "good", "--time-budget", "soon"], 2, "90m, 2h, 1h30m or 45s"),
    "sweep: no job": (["sweep", "good", "--jobs", "0"], 2, "jobs = 0"),
    "sweep: a cluster without ray": (
        ["sweep", "good", "--ray-address", "auto"],
        2,
        "needs launcher ray",
    ),
    "sweep: resumed with other settings": (
        ["sweep", "--resume", "good", "--jobs", "2", "--lrs", "1"],
        2,
        "leave out: lrs",
    ),
    "sweep: not a sweep": (["sweep", "--resume", "good"], 2, "not a study"),
    "no place": (["finetune", "good", "--cache", "tape"], 2, "'tape'"),
    "no size": (["finetune", "good", "--cache-limit", "16"], 2, "500MB, 16GB or 16GiB"),
    "unknown arm": (["finetune", "good", "--arm", "swoosh"], 2, "'swoosh'"),
    "unknown model": (["finetune", "good", "--model", "resnet1800"], 2, "did you mean resnet18"),
    "no ReLU": (
        ["finetune", "good", "--model", "vit_tiny_patch16_224", "--no-pretrained"],
        2,
        "GELU",
    ),
    "no network": (["finetune", "good", "--model", "resnet18"], 2, "--pretrained-path"),
    "mistyped YAML key": (
        ["finetune", "good", "--config", "typo.yaml"],
        2,
        "did you mean 'epochs'",
    ),
    "not YAML": (["finetune", "good", "--config", "broken.yaml"], 2, "not YAML"),
    "wrong type": (["finetune", "good", "--epochs", "many"], 2, "--epochs"),
    "wrong type in YAML": (["finetune", "good", "--config", "type.yaml"], 2, "epochs = 'many'"),
    "neither a number nor auto": (
        ["finetune", "good", "-b", "many"],
        2,
        "'many': a whole number of at least 1 is wanted, or auto",
    ),
    "no checkpointing": (
        ["finetune", "good", *FAST, "--model", "selecsls42", "--grad-checkpointing"],
        2,
        "leave out --grad-check",
    ),
    "negative rate": (["finetune", "good", "--lr", "-1"], 2, "lr = -1.0"),
    "unknown option": (["finetune", "good", "--learning-rate", "1"], 2, "No such option"),
    "unknown optimiser": (["finetune", "good", "--opt", "adamww", *FAST], 2, "did you mean"),
    "unknown device": (["finetune", "good", "--device", "gpu"], 2, "--device gpu"),
    "no folder given": (["finetune"], 2, "arelu-tl finetune DATA"),
    "unwritable output": (
        ["finetune", "good", "--output", "a-file/runs", *FAST],
        5,
        "cannot write",
    ),
    "pattern without match": (
        ["finetune", "good", "--include", "layer9.*", *FAST],
        2,
        "matches no site",
    ),
    "unknown policy": (["finetune", "good", "--aa", "foo", *FAST], 2, "a training step fails"),
    "too small for BatchNorm": (
        ["finetune", "good", *FAST, "--model", "resnet18", "-b", "1"],
        2,
        "a training step fails",
    ),
    "not a run": (["evaluate", "good", "good"], 2, "neither a run folder nor"),
    "nothing to compare": (["compare", "good"], 2, "holds no runs"),
    "unknown command": (["fintune"], 2, "No such command"),
}
# Two that end before torch is imported, and one in training.
ALONE = ("unknown command", "missing folder", "too small for BatchNorm")


@pytest.fixture(scope="module")
def bad_place(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bad")
    make_folder(train=2, val=1).rename(place / "good")
    (place / "empty").mkdir()
    make_folder(classes=1).rename(place / "one")
    for name in ("a", "b"):
        (place / "rotten" / name).mkdir(parents=True)
        (place / "rotten" / name / "x.jpg").write_text("not a picture")
    (place / "typo.yaml").write_text("epoch: 3\n")
    (place / "broken.yaml").write_text("epochs: [3\n")
    (place / "type.yaml").write_text("epochs: many\n")
    (place / "a-file").write_text("")
    return place


@pytest.fixture(scope="module")
def bad_results(bad_place: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    return {
        case: (run_alone if case in ALONE else run_command)(*BAD[case][0], cwd=bad_place)
        for case in BAD
    }


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_its_exit_code(
    case: str, bad_results: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    _, code, words = BAD[case]
    told = bad_results[case]
    assert told.returncode == code, told.stderr
    lines = [line for line in told.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, told.stderr
    assert words in lines[0]
    assert lines[0].startswith("arelu-tl: ")


def test_bad_input_leaves_no_study_behind(bad_results: dict[str, Any], bad_place: Path) -> None:
    assert len(bad_results) == len(BAD)
    assert [p for p in bad_place.rglob("*") if "runs" in p.parts] in ([], [bad_place / "runs"])
    assert list(bad_place.rglob("*.json")) == []


def test_debug_shows_the_traceback(bad_place: Path) -> None:
    told = run_alone("finetune", "nowhere", "--debug", cwd=bad_place)
    assert "Traceback" in told.stderr
    assert told.returncode == 2


def test_corrupt_picture_is_skipped_in_both_arms_when_asked(
    make_folder: Any, tmp_path: Path
) -> None:
    root: Path = make_folder()
    bad = root / "train" / "class 0" / "bad.png"
    bad.write_bytes((root / "train" / "class 0" / "0.png").read_bytes()[:200])
    refused = run_command("finetune", root, *FAST, cwd=tmp_path)
    assert (refused.returncode, "bad.png" in refused.stderr) == (2, True)
    done = run_command(
        "finetune", root, *FAST, "--on-bad-image", "skip", "--lr", "1e-3", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "bad.png" in done.stderr
    study = tmp_path / "runs" / "study-1"
    assert [r["path"] for r in json.loads((study / "dataset.json").read_text())["rejected"]] == [
        "train/class 0/bad.png"
    ]
    assert "bad.png" not in (study / "split.csv").read_text()


def test_help_and_version_import_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom arelu_tl.cli.app import main\n"
        "for command in ([], *([name] for name in sys.argv[1:])):\n"
        "    try:\n        main([*command, '--help'])\n"
        "    except SystemExit as end:\n        assert not end.code, (command, end.code)\n"
        "    loaded = {'torch', 'timm', 'numpy', 'matplotlib'} & set(sys.modules)\n    assert not loaded, (command, loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == 1 + len(COMMANDS)
    # The first page is written without importing the commands; it must say of each what the command's own page says.
    first, *pages = (
        " ".join(page.replace("│", " ").split()) for page in done.stdout.split("Usage: ")[1:]
    )
    for name, page in zip(COMMANDS, pages, strict=True):
        summary = _summary(f"arelu_tl.cli.{name}")
        assert len(summary) > 20
        assert summary in first
        assert summary in page
    # Whatever comes after it, as long as it comes first.
    beside = " ".join(run_command("--help", "sweep", cwd=tmp_path).stdout.split())
    assert all(_summary(f"arelu_tl.cli.{name}") in beside for name in COMMANDS)
    version = run_alone("--version", cwd=tmp_path)
    assert version.stdout.startswith("arelu-tl ")


def test_inspect_imports_only_what_it_needs() -> None:
    code = (
        "import sys\nfrom arelu_tl.cli.app import main\ntry:\n    main(['inspect', 'test_resnet', '--no-pretrained', '--json'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(*({'scipy', 'sklearn', 'matplotlib', 'jinja2', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "torch", done.stderr


def test_options_are_the_configuration(tmp_path: Path, study: tuple[Path, Any]) -> None:
    written = yaml.safe_load((study[0] / "study.yaml").read_text())
    assert written["model"] == "test_resnet"
    assert written["img_size"] == 32
    help_text = run_command("finetune", "--help", cwd=tmp_path, COLUMNS="200").stdout
    for key in written:
        if key != "data":
            assert "--" + key.replace("_", "-") in help_text, key


EXAMPLE = Path(__file__).parents[2] / "examples" / "run_onnx.py"


@pytest.fixture(scope="module")
def onnx_file(
    study: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """The study's best run as one file, and what its export reported."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    done = run_command(
        "export", study[0], "--format", "onnx", "--output", path, "--json", cwd=path.parent
    )
    assert done.returncode == 0, done.stderr
    assert "is best" in done.stderr
    return path, json.loads(done.stdout)


def test_an_onnx_file_says_what_predict_says_to_a_script_that_knows_neither_torch_nor_us(
    onnx_file: tuple[Path, Any], pictures: Path, tmp_path: Path
) -> None:
    path, report = onnx_file
    runtimes = [
        "the graph in torch",
        "onnxruntime, optimisation off",
        "onnxruntime, optimisation on",
    ]
    assert [proof["runtime"] for proof in report["proofs"]] == runtimes
    assert all(proof["inputs"] == 20 and proof["share"] < 1 for proof in report["proofs"])
    images = sorted(pictures.glob("val/*/*.png"))
    told = run_command("predict", report["run"], *images, "--json", cwd=tmp_path)
    labels = [each["predictions"][0]["label"] for each in json.loads(told.stdout)]
    for image, label in list(zip(images, labels, strict=True))[::4]:
        command = [sys.executable, str(EXAMPLE), str(path), str(image)]
        assert (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            == label
        )


def test_an_onnx_file_holds_what_its_user_needs_and_nothing_of_this_machine(
    study: tuple[Path, Any], onnx_file: Any
) -> None:
    import onnx

    path, report = onnx_file
    content = path.read_bytes()
    assert not [
        place
        for place in (str(study[0]), str(Path.cwd()), "site-packages", str(Path.home()))
        if place.encode() in content
    ]
    model = onnx.load_model_from_string(content)
    inside = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert inside["classes"] == ["class 0", "class 1", "class 2"]
    assert inside["preprocessing"]["input_size"] == [3, 32, 32]
    arm = inside["arelu_tl"]["arm"]
    assert report["fold"]["kept"] == {}
    assert (
        len(report["fold"]["folded"])
        == len(inside["arelu_tl"]["frozen_sites"])
        == (12 if arm == "arelu" else 0)
    )
    layers = {
        "Conv",
        "AveragePool",
        "MaxPool",
        "ReduceMean",
        "Reshape",
        "Gemm",
        "Add",
        "LeakyRelu" if arm == "arelu" else "Relu",
    }
    assert {node.op_type for node in model.graph.node} <= layers
    again = run_command("export", study[0], "--format", "onnx", "--output", path, cwd=path.parent)
    assert (again.returncode, "exists" in again.stderr) == (5, True)
