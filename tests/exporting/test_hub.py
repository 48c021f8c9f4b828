"""Uploads to a small hub of our own, a real HTTP server with the endpoints that the client calls. It keeps all it gets."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from tiny_onnx import write_tiny_onnx

from arelu_tl.errors import ConfigError, StorageError
from arelu_tl.exporting.hub import check_hub, push_to_hub
from arelu_tl.exporting.hub_card import HubFile, escaped, readme
from arelu_tl.exporting.proof import Proof
from arelu_tl.exporting.report import AccuracyChange, ExportReport
from arelu_tl.records.card import ModelCard

TOKEN = "hf_ourOwnSecret"
REPO = "someone/digits"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Attributes:
    url: of the server.
    exists, is_public: the repository as it is found.
    refuse: status to answer with instead, by the path's end.
    requests: (method, path, Authorization, body) in order.
    """

    url: str = ""
    exists: bool = False
    is_public: bool = True
    refuse: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)

    def body(self, ending: str) -> bytes:
        (found,) = [body for _, path, _, body in self.requests if path.endswith(ending)]
        return found

    def committed(self) -> dict[str, bytes]:
        """Content by name of the one commit."""
        rows = [json.loads(line) for line in self.body("/commit/main").splitlines()]
        assert [row["key"] for row in rows] == ["header"] + ["file"] * (len(rows) - 1)
        return {row["value"]["path"]: base64.b64decode(row["value"]["content"]) for row in rows[1:]}

    def tokens(self) -> set[str | None]:
        """What the requests that are ours came with; the client asks something of its own without any."""
        return {token for _, path, token, _ in self.requests if path != "/api/agent-harnesses"}

    def metadata(self) -> dict[str, Any]:
        return front(self.committed()["README.md"].decode())

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        for ending, answer in self.refuse.items():
            if path.endswith(ending):
                return answer
        if path == "/api/repos/create":
            if not self.exists:
                self.is_public = json.loads(body).get("visibility") != "private"
            status, told = (409 if self.exists else 200), {"url": f"{self.url}/{REPO}"}
        elif path == "/api/validate-yaml":
            status, told = 200, {"warnings": [{"message": "a remark of the hub"}], "errors": []}
        elif path == f"/api/models/{REPO}/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            status, told = 200, {"files": files}
        elif path == f"/api/models/{REPO}/commit/main":
            status, told = (
                200,
                {"commitUrl": f"{self.url}/{REPO}/commit/{COMMIT}", "commitOid": COMMIT},
            )
        elif method == "GET" and path == f"/api/models/{REPO}":
            status, told = (
                200,
                {
                    "id": REPO,
                    "private": not self.is_public,
                    "sha": COMMIT,
                    "tags": [],
                    "siblings": [],
                },
            )
        else:
            status, told = 404, {"error": f"no {method} {path} here"}
        return status, json.dumps(told).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            state.requests.append((self.command, path, self.headers.get("Authorization"), body))
            status, told = state.answer(self.command, path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = _answer  # noqa: N815  http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


CARD = ModelCard(
    backbone="resnet18.a1_in1k", architecture="resnet18", img_size=64, arm="arelu", classes=["zero", "one"],
    data_config={
        "input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic",
        "crop_pct": 0.95, "crop_mode": "center",
    },
    model_args={}, sites=[], step=66, top1=0.8125, loss=0.7, weights="timm/resnet18.a1_in1k", license="apache-2.0",
    version="0.1.0", training={"lr": 1e-4, "epochs": 6, "best_step": 66},
)  # fmt: skip
WEIGHTS = bytes(range(256)) * 64


@pytest.fixture
def folder(tmp_path: Path) -> ExportReport:
    """An export as a folder of files; the upload asks nothing more of it."""
    path = tmp_path / "secret place" / "arelu-lr0.0001-s0"
    path.mkdir(parents=True)
    files = {"config.json": b'{"architecture": "resnet18"}', "model.safetensors": WEIGHTS}
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "notes.txt").write_text("not part of the export")
    return ExportReport(
        path, {name: len(content) for name, content in files.items()}, "0" * 64, run=tmp_path / "run", form="timm",
        proofs=[Proof("read back", 21, 3.1e-6, 0.2, 1.2e-6)],
    )  # fmt: skip


def front(text: str) -> dict[str, Any]:
    opening, block, _ = text.split("---\n", 2)
    assert opening == ""
    found = yaml.safe_load(block)
    assert isinstance(found, dict)
    return found


def test_a_folder_arrives_in_one_commit_with_its_card(hub: Hub, folder: ExportReport) -> None:
    url = push_to_hub(folder, CARD, REPO)
    assert url == f"{hub.url}/{REPO}/commit/{COMMIT}"
    arrived = hub.committed()
    assert sorted(arrived) == ["README.md", "config.json", "model.safetensors"]
    assert arrived["model.safetensors"] == WEIGHTS
    assert arrived["config.json"] == (folder.path / "config.json").read_bytes()
    assert hub.tokens() == {f"Bearer {TOKEN}"}
    assert json.loads(hub.body("/api/repos/create")) == {
        "name": "digits",
        "organization": "someone",
    }
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": "validation pictures of the training folder", "type": "imagefolder"},
        "metrics": [{"type": "accuracy", "value": 0.8125}],
    }
    assert hub.metadata() == {
        "license": "apache-2.0", "library_name": "timm", "pipeline_tag": "image-classification", "metrics": ["accuracy"],
        "tags": ["image-classification", "arelu", "timm", "resnet18"], "model-index": [{"name": "digits", "results": [result]}],
    }  # fmt: skip
    text = arrived["README.md"].decode()
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in text
    assert "0.8125 after 66 training steps, a checkpoint that was chosen by this number" in text
    assert "logits at most 3.1e-06 from the trained model's in float64, on 21 inputs" in text
    for foreign in ("secret place", str(folder.path.parents[1]), TOKEN, "arelu-lr0.0001-s0"):
        assert (
            foreign.encode()
            not in b"".join(body for *_, body in hub.requests) + arrived["README.md"]
        )


def test_a_repository_that_is_there_takes_another_commit(hub: Hub, folder: ExportReport) -> None:
    hub.exists = True
    push_to_hub(folder, CARD, REPO)
    assert hub.committed()["model.safetensors"] == WEIGHTS


def test_private_is_asked_for(hub: Hub, folder: ExportReport) -> None:
    push_to_hub(folder, CARD, REPO, private=True)
    assert json.loads(hub.body("/api/repos/create"))["visibility"] == "private"
    assert "model.safetensors" in hub.committed()


def test_what_shall_be_private_does_not_go_where_all_can_see_it(
    hub: Hub, folder: ExportReport
) -> None:
    hub.exists = True
    with pytest.raises(StorageError, match="is public, nothing was uploaded") as told:
        push_to_hub(folder, CARD, REPO, private=True)
    assert str(folder.path) in str(told.value)
    assert not any(
        path.endswith(("/commit/main", "/preupload/main")) for _, path, _, _ in hub.requests
    )
    hub.is_public = False
    push_to_hub(folder, CARD, REPO, private=True)
    assert "model.safetensors" in hub.committed()


@pytest.mark.parametrize("with_preprocessing", [False, True])
def test_an_onnx_file_arrives_as_it_is(hub: Hub, tmp_path: Path, with_preprocessing: bool) -> None:
    path = write_tiny_onnx(tmp_path / "README.md", with_preprocessing=with_preprocessing)
    content = path.read_bytes()
    report = ExportReport(
        path, {path.name: len(content)}, "0" * 64, accuracy=AccuracyChange(48, 0.75, 0.5, 0.625)
    )
    push_to_hub(report, CARD, REPO)
    arrived = hub.committed()
    # Whatever the user calls the file, it is not taken for the card.
    assert sorted(arrived) == ["README.md", "README.md.onnx"]
    assert arrived["README.md.onnx"] == content
    told = hub.metadata()
    assert told["tags"][-1] == "onnx"
    assert told["library_name"] == "arelu-tl"
    assert told["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.5}]
    text = arrived["README.md"].decode()
    assert "0.5000 of this file, on 48 pictures (0.7500 before" in text
    assert ("uint8 (1, height, width, 3)" in text) == with_preprocessing


@pytest.mark.parametrize(
    ("with_preprocessing", "crop"), [(False, "center"), (True, "center"), (False, "squash")]
)
def test_the_onnx_code_of_the_card_runs(
    tmp_path: Path, with_preprocessing: bool, crop: str
) -> None:
    """Only where the file and the picture come from is put in."""
    import numpy as np
    from PIL import Image
    from tiny_onnx import DATA

    path = write_tiny_onnx(tmp_path / "tiny.onnx", with_preprocessing=with_preprocessing)
    picture = tmp_path / "green.png"
    Image.fromarray(np.full((9, 12, 3), (20, 220, 60), np.uint8)).save(picture)
    card = replace(CARD, data_config={**DATA, "crop_mode": crop})
    text = readme(
        ExportReport(path, {}, ""), card, REPO, HubFile("onnx", "tiny.onnx", with_preprocessing)
    )
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace(
        "from huggingface_hub import hf_hub_download\n",
        f"hf_hub_download = lambda *_: {str(path)!r}\n",
    )
    ran = subprocess.run(
        [sys.executable, "-c", code.replace('"PICTURE"', repr(str(picture)))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == (["green"] if crop == "center" else [])
    if (
        not with_preprocessing and crop == "center"
    ):  # from the picture's size on it is the example, which is held to predict
        example = (Path(__file__).parents[2] / "examples" / "run_onnx.py").read_text()
        assert example[example.index("(w, h)") :] in code


def test_a_pt2_file_is_known_by_its_content(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"PK\x03\x04" + WEIGHTS)
    push_to_hub(ExportReport(path, {path.name: 1}, ""), CARD, REPO)
    arrived = hub.committed()
    assert arrived["model.pt2"] == path.read_bytes()
    assert b"torch.export.load(path" in arrived["README.md"]


@pytest.mark.parametrize(
    ("ending", "status", "words"),
    [
        ("/api/repos/create", 401, "does not accept the token"),
        ("/api/repos/create", 403, "may not write to someone/digits"),
        ("/commit/main", 403, "may not write to someone/digits"),
        ("/commit/main", 413, r"refuses \(413\): too much of it"),
        ("/api/validate-yaml", 400, "Invalid metadata"),
    ],
)
def test_a_refusal_is_told_in_one_line(
    hub: Hub, folder: ExportReport, ending: str, status: int, words: str
) -> None:
    hub.refuse = {
        ending: (status, b'{"error": "too much of it", "errors": [{"message": "bad\\nname"}]}')
    }
    if ending.endswith("create"):
        hub.refuse[f"/api/models/{REPO}"] = (
            status,
            b"{}",
        )  # else the client takes it for a repository that is there
    with pytest.raises(StorageError, match=words) as told:
        push_to_hub(folder, CARD, REPO)
    assert str(told.value).endswith(f"the export itself is at {folder.path}")
    assert "\n" not in str(told.value)
    assert TOKEN not in str(told.value)
    assert (folder.path / "model.safetensors").read_bytes() == WEIGHTS


def test_what_is_no_hub_is_said_to_be_none(hub: Hub, folder: ExportReport) -> None:
    hub.refuse = {"/api/repos/create": (200, b"<html>Please log in to this network</html>")}
    with pytest.raises(
        StorageError, match="does not answer as a hub does; the export itself is at"
    ):
        push_to_hub(folder, CARD, REPO)


def test_a_server_that_is_down_is_told(
    folder: ExportReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        StorageError, match=r"connection to http://127.0.0.1:9 failed: .*; the export itself is at"
    ):
        push_to_hub(folder, CARD, REPO)


@pytest.mark.parametrize(
    "repo",
    [
        "digits",
        "a/b/c",
        "some one/digits",
        "someone/dig--its",
        "someone/",
        "/digits",
        "someone/x.git",
    ],
)
def test_a_name_that_the_hub_would_not_take(hub: Hub, folder: ExportReport, repo: str) -> None:
    with pytest.raises(ConfigError, match="`push_to_hub`") as told:
        check_hub(repo)
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError):
        push_to_hub(folder, CARD, repo)
    assert hub.requests == []


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    check_hub(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        check_hub(REPO)
    assert hub.requests == []


def test_nobody_is_logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="`hf auth login` or set HF_TOKEN"):
        check_hub(REPO)
    (tmp_path / "token").write_text(TOKEN)
    check_hub(REPO)
    assert hub.requests == []


def test_the_environment_is_the_clients(hub: Hub, folder: ExportReport, tmp_path: Path) -> None:
    """HF_ENDPOINT, the token of HF_HOME and HF_HUB_OFFLINE, read by a process of its own; torch is not needed for it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_fromTheHome\n")
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace\n"
        "from arelu_tl.records.card import ModelCard; from arelu_tl.exporting.hub import push_to_hub\n"
        f"report = SimpleNamespace(path=Path({str(folder.path)!r}), files={folder.files!r}, form='timm', unlike_timm=None,\n"
        f"                         accuracy=None, proofs=[])\n"
        f"print(push_to_hub(report, ModelCard(**{CARD.to_json()!r}), {REPO!r})); assert 'torch' not in sys.modules"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.strip() == f"{hub.url}/{REPO}/commit/{COMMIT}"
    assert ran.stderr == ""
    assert hub.committed()["model.safetensors"] == WEIGHTS
    assert hub.tokens() == {"Bearer hf_fromTheHome"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert ran.returncode == 1
    assert "HF_HUB_OFFLINE is set" in ran.stderr


def _readme(folder: ExportReport, **changes: Any) -> str:
    return readme(
        folder, replace(CARD, **changes), REPO, HubFile("safetensors", "model.safetensors")
    )


def test_names_of_classes_stay_text(folder: ExportReport) -> None:
    names = [
        "---\nlicense: mit\n---", "<script>alert(1)</script>", "[x](http://evil.example)", "a|b", "`rm`", "```", "# big",
        "![](http://evil.example/x.png)", "\u202eevil", "caf\udce9", "日本", "x" * 500, "{{ 7 * 7 }}", "www.evil.example", "1. x",
        "",
    ]  # fmt: skip
    text = _readme(folder, classes=names)
    assert front(text)["license"] == "apache-2.0"
    rows = text.split("## Classes\n\n")[1].splitlines()
    assert len(rows) == len(names)
    for index, row in enumerate(rows):
        assert row.startswith(f"- {index}:")
        assert len(row) < 200
        bare = row.removeprefix(f"- {index}:")
        assert all(
            c == "\\" or c.isalnum() or c in " …" or bare[at - 1] == "\\"
            for at, c in enumerate(bare)
        ), row
    text.encode()
    assert "日本" in text
    assert "\u202e" not in text


def test_many_classes_are_cut_and_the_rest_is_said_to_be_elsewhere(folder: ExportReport) -> None:
    text = _readme(folder, classes=[f"class {number}" for number in range(1000)])
    assert "- 99: class 99\n\nand 900 more, in `label_names` of `config.json`" in text
    assert "class 100" not in text


def test_what_is_not_known_is_not_said(folder: ExportReport) -> None:
    told = front(text := _readme(folder, top1=None, license=None, training={}))
    assert not {"license", "metrics", "model-index", "base_model"} & set(told)
    assert "| validation accuracy | not recorded |" in text
    assert "licence" not in text


@pytest.mark.parametrize(
    ("license", "told"),
    [
        ("MIT", {"license": "mit"}),
        ("unknown", {}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        ("x\n---\nfoo: bar", {"license": "other", "license_name": "x-----foo-bar"}),
    ],
)
def test_licences_as_the_hub_names_them(
    folder: ExportReport,
    license: str,
    told: dict[str, str],
) -> None:
    found = front(_readme(folder, license=license))
    assert {key: value for key, value in found.items() if key.startswith("license")} == told


@pytest.mark.parametrize(
    ("backbone", "base"),
    [
        ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("hf-hub:me/mine@main", "me/mine"),
        ("hf-hub:../../etc", None),
        ("local-dir:/home/me/secret/net", None),
        ("resnet18.a1_in1k", None),
    ],
)
def test_the_base_model_is_one_on_the_hub(
    folder: ExportReport, backbone: str, base: str | None
) -> None:
    text = _readme(folder, backbone=backbone, weights=backbone)
    assert front(text).get("base_model") == base
    assert "secret" not in text


def test_each_form_is_loaded_as_it_can_be(folder: ExportReport) -> None:
    frozen = _readme(replace(folder, form="frozen", unlike_timm="timm has no cap (act1)"))
    assert front(frozen)["library_name"] == "arelu-tl"
    assert "timm.create_model" not in frozen
    assert f"arelu_tl.load_model(snapshot_download('{REPO}'))" in frozen
    assert "timm alone cannot build it: timm has no cap \\(act1\\)" in frozen
    relu = _readme(folder, arm="relu")
    assert "its activations unchanged" in relu
    assert "replaced" not in relu


def test_escaped_text_is_one_short_line() -> None:
    assert escaped("a_b*c\nd") == "a\\_b\\*c d"
    assert len(escaped("x" * 500)) == 80
