"""Which pictures are labelled, in what order, and with how much in memory."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_onnx import write_tiny_onnx

from arelu_tl.data.gate import Rejected
from arelu_tl.errors import ConfigError
from arelu_tl.models.classifier import Answer, Classifier, classify, open_classifier
from arelu_tl.models.predict import Prediction, find_pictures, predict

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def save(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), COLOURS[colour]).save(path)
    return path


def test_folders_are_searched_to_any_depth_for_pictures_only(tmp_path: Path) -> None:
    wanted = [
        save(tmp_path / name) for name in ("a/2.png", "a/10.PNG", "a/deeper/still/1.png", "b.jpg")
    ]
    (tmp_path / "a" / "notes.txt").write_text("no picture by name")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    save(tmp_path / ".cache" / "3.png")
    found = find_pictures([str(tmp_path)])
    assert (found.paths, found.missing) == (wanted, [])


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    picture = save(tmp_path / "in" / "1.png")
    save(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "elsewhere")
    assert find_pictures([str(tmp_path / "in")]).paths == [
        picture,
        tmp_path / "in" / "out" / "2.png",
    ]


def test_patterns_are_expanded_and_every_picture_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/note.txt"):
        save(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert [str(p) for p in find_pictures(["*/1.png"]).paths] == ["a/1.png", "b/1.png"]
    for pattern in ("**/*", "*", "[ab]/*", str(tmp_path / "*" / "?.png")):
        assert len(find_pictures([pattern]).paths) == 3, pattern
    mixed = find_pictures(["b/1.png", "a", "**/*.png", str(tmp_path / "a" / ".." / "a" / "1.png")])
    assert [str(p) for p in mixed.paths] == ["b/1.png", "a/1.png", "a/2.png"]


def test_a_name_with_the_letters_of_a_pattern_is_a_name(tmp_path: Path) -> None:
    picture = save(tmp_path / "what[1]*.png")
    assert find_pictures([str(picture)]).paths == [picture]


def test_arguments_without_a_picture_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / name) for name in ("gone.png", "empty", "*.gif")]
    found = find_pictures(arguments)
    assert found.paths == []
    assert [(m.path, m.reason) for m in found.missing] == list(
        zip(
            arguments,
            [
                "no such file or folder",
                "no picture in this folder",
                "no picture matches this pattern",
            ],
            strict=True,
        )
    )


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    return open_classifier(write_tiny_onnx(tmp_path / "m.onnx"))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_labels_come_in_the_pictures_order_and_bad_ones_in_their_place(
    classifier: Classifier, batch_size: int, tmp_path: Path
) -> None:
    names = ["red", "green", "bad", "blue", "red", "gone", "green"]
    paths = [
        save(tmp_path / f"{n}.png", name) if name in COLOURS else tmp_path / f"{n}.png"
        for n, name in enumerate(names)
    ]
    paths[2].write_bytes(paths[0].read_bytes()[:45])
    seen: list[tuple[int, int]] = []
    told = list(
        predict(classifier, paths, batch_size=batch_size, progress=lambda *done: seen.append(done))
    )
    assert [each.labels[0] if isinstance(each, Prediction) else each.path for each in told] == [
        "red", "green", str(paths[2]), "blue", "red", str(paths[5]), "green"
    ]  # fmt: skip
    assert isinstance(told[5], Rejected)
    assert told[5].reason == "No such file or directory"
    assert seen == [(n, 7) for n in range(1, 8)]


def test_top_is_at_most_the_number_of_classes_and_most_probable_first(
    classifier: Classifier, tmp_path: Path
) -> None:
    (told,) = predict(classifier, [save(tmp_path / "1.png", "green")], top=9)
    assert isinstance(told, Prediction)
    assert told.labels == ["green", "red", "blue"]  # red and blue are equally likely
    assert told.probabilities == sorted(told.probabilities, reverse=True)
    assert sum(told.probabilities) == pytest.approx(1)
    (told,) = predict(classifier, [tmp_path / "1.png"], top=1)
    assert isinstance(told, Prediction)
    assert told.labels == ["green"]


@pytest.mark.parametrize("wrong", [{"top": 0}, {"batch_size": 0}])
def test_no_labels_or_no_pictures_at_a_time_is_refused(
    classifier: Classifier, wrong: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        predict(classifier, [], **wrong)  # type: ignore[arg-type]


class _Counting(Classifier):
    """Knows how many prepared pictures exist at a time."""

    classes = ("a", "b")  # type: ignore[assignment]
    alive = most = largest = 0
    lock = threading.Lock()

    def prepare(self, picture: Image.Image) -> NDArray[Any]:
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        return np.zeros(1)

    def log_probabilities(self, prepared: Any) -> NDArray[np.float64]:
        with self.lock:
            self.alive -= len(prepared)
        self.largest = max(self.largest, len(prepared))
        return np.log(np.full((len(prepared), 2), 0.5))


@pytest.mark.parametrize("largest_batch", [None, 1])
def test_a_few_pictures_wait_however_many_there_are(
    largest_batch: int | None, tmp_path: Path
) -> None:
    picture = save(tmp_path / "1.png")
    asked = 0

    def paths() -> Iterator[Path]:
        nonlocal asked
        for asked in range(1, 2001):  # noqa: B007 (read by the test)
            yield picture

    counting = _Counting()
    counting.largest_batch = largest_batch
    answers = classify(counting, paths(), batch_size=16)
    first = next(answers)
    assert isinstance(first, Answer)
    bound = 2 * max(16 if largest_batch is None else 1, min(8, os.cpu_count() or 1))
    assert asked <= bound
    assert len(list(answers)) == 1999
    assert counting.most <= bound
    assert counting.largest == (largest_batch or 16)
