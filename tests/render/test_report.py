"""The page tells everything, loads nothing, and shows foreign text as text."""

import base64
import hashlib
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_study import NASTY, Study, picture_path, write_grid, write_predictions
from run_folders import write_run

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.analysis.statistics import PairedDifference
from arelu_tl.records.runs import find_runs
from arelu_tl.render.report.pictures import SIDE, thumbnails
from arelu_tl.render.report.report import write_report_files
from arelu_tl.render.report.subjects import Judged
from arelu_tl.render.report.table import difference, number, probability, when
from arelu_tl.render.text import visible

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would make of a page; raises where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw = {"style": "", "script": ""}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.raw:
            self.raw[self._open[-1]] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return Page(study.html)


def test_files(study: Study) -> None:
    told = {path.name for path in study.page.parent.iterdir() if path.is_file()}
    assert told == {"convergence.png", "convergence.svg", "report.html"}


def test_every_sentence_and_warning_is_told(study: Study, page: Page) -> None:
    comparison = study.comparison
    sentences = [found.sentence for found in comparison.rates] + [
        found.sentence for found in comparison.best
    ]
    for told in [*sentences, *comparison.warnings, *comparison.gain]:
        assert " ".join(told.split()) in page.text


def test_class_names_are_text(page: Page) -> None:
    for name in NASTY:
        assert visible(name) in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [
        name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "style"
    ]
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    assert "<i>pictures</i>" in page.text  # of the title
    assert [name for name in page.attributes("alt") if NASTY[0] in name]


def test_nothing_is_loaded_or_may_run_but_our_own(page: Page) -> None:
    assert all(target.startswith("#") for target in page.attributes("href"))
    anchors = set(page.attributes("id"))
    assert {target[1:] for target in page.attributes("href")} <= anchors
    assert not [
        tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "embed", "form", "base")
    ]
    assert "http" not in page.raw["style"] + page.raw["script"]
    assert "url(" not in page.raw["style"]
    (policy,) = [
        attrs["content"]
        for _, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for part in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[part].encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy


def test_pictures_have_alternative_texts_and_tables_rectangular_rows(
    page: Page, study: Study
) -> None:
    assert len(page.attributes("src")) == len([alt for alt in page.attributes("alt") if alt])
    for table in re.findall(r"<table.*?</table>", study.html, re.S):
        head, *rows = re.findall(r"<tr>.*?</tr>", table, re.S)
        assert {row.count("<td") for row in rows} == {head.count("<th")}


def test_what_was_left_out_and_what_it_rests_on_is_told(page: Page) -> None:
    for told in (
        "no partner at its rate and seed",
        "failed: NonFiniteError: the training loss became nan",
        "train/x/<b>.png",
        "truncated",
        "train/x/1.png = val/x/1.png",
        "drift_budget: 1.0",
        "torch 2.10",
        "dddddddd",
        "Sites of arelu",
        "act2",
        "What surgery did",
        "McNemar p",
        "How to read it",
    ):
        assert told in page.text


def test_disagreements_are_shown_with_both_predictions(study: Study, page: Page) -> None:
    html = study.html
    sources = [src for src in page.attributes("src") if src.startswith("data:image/jpeg")]
    assert sources
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            assert picture.format == "JPEG"
            assert max(picture.size) <= SIDE
    assert "Right with arelu, wrong with relu" in html
    assert "Right with relu, wrong with arelu" in html
    assert re.search(r"<span>arelu: .*? \d+%</span><span>relu: .*? \d+%</span>", html)


def test_pictures_that_are_not_to_be_had_say_so(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"not for a page")
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (600, 400), "red").save(root / "good.png")
    Image.new("RGB", (20, 10), "red").save(root / "small.png")
    (root / "bad.png").write_bytes(b"damaged")
    paths = [
        "good.png",
        "small.png",
        "bad.png",
        "gone.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "a\0b",
        ".",
    ]
    good, small, bad, gone, outside, absolute, cut, folder = thumbnails(
        [Judged(path, "a", "a", 1.0, "b", 1.0) for path in paths], root
    )
    assert good.source.startswith("data:image/jpeg")
    assert not good.small
    assert small.small
    assert "no picture any more: not a picture in any known format" in bad.missing
    assert gone.missing == "the file is gone"
    assert (
        outside.missing
        == absolute.missing
        == cut.missing
        == "its path is none inside the folder of pictures"
    )
    assert "cannot be read" in folder.missing
    assert not any(each.source for each in (bad, gone, outside, absolute, cut, folder))
    assert thumbnails([Judged("a", "a", "a", 1.0, "b", 1.0)], None)[0].missing


def test_a_folder_that_is_gone_is_information(tmp_path: Path) -> None:
    write_grid(tmp_path / "study", ("relu", "arelu"), (1e-3,), (0,), data=tmp_path / "moved")
    runs = find_runs(tmp_path / "study")
    write_report_files(compare_runs(runs), runs, tmp_path, title="t")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"The folder of pictures, {tmp_path / 'moved'}, is not there any more" in page.text
    assert picture_path(0) in page.text or picture_path(1) in page.text


def test_without_predictions_sites_or_a_second_rate_their_parts_are_missing(tmp_path: Path) -> None:
    for arm in ("relu", "leaky"):
        write_run(tmp_path / "study", arm, [0.1, 0.5, 0.9], lr=1e-3)
    runs = find_runs(tmp_path / "study")
    write_report_files(compare_runs(runs), runs, tmp_path, title="t")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "No run of a pair has left predictions yet." in page.text
    assert "What the sites learnt" not in page.text
    assert "Whiskers" not in page.text
    assert [src[:18] for src in page.attributes("src")] == ["data:image/svg+xml"]


def test_a_page_of_one_seed_has_no_signs(study: Study, tmp_path: Path) -> None:
    assert "▲ faster or better" in study.html
    assert "Whiskers are one standard deviation over the seeds" in study.html
    write_grid(tmp_path / "study", ("relu", "arelu", "leaky"), (1e-4, 1e-3), (0,))
    runs = find_runs(tmp_path / "study")
    comparison = compare_runs(runs)
    assert {found.verdict for found in comparison.judged} > {"ahead in this run"}
    write_report_files(comparison, runs, tmp_path, title="t")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    told = html[html.index("<main>") : html.index('<section id="reading">')]
    assert "At a glance: no sign: one seed" in told
    assert "All of one seed, which knows of no blur" in told
    assert not set(re.findall(r'class="[^"]*\b(more|less|same)\b', told))
    assert not [sign for sign in ("▲", "▼", "○", "McNemar", "Whiskers") if sign in told]


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path: Path) -> None:
    classes = tuple(f"class {n}" for n in range(70))
    write_grid(tmp_path / "study", ("relu", "arelu"), (1e-3,), (0,))
    runs = find_runs(tmp_path / "study")
    for run in runs:
        write_predictions(run.path, [number % 3 > 0 for number in range(140)], classes)
    write_report_files(compare_runs(runs), runs, tmp_path, title="t")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "The most frequent confusions" in page.text
    assert "22 rarer ones are left out." in page.text
    assert "Confusion matrices" not in page.text


def test_values_of_cells() -> None:
    assert number(-0.25, "+.2f").text == "−0.25"
    assert number(None).sort == ""
    assert probability(1e-7).text == "< 0.0001"
    never = TimeToTarget(reached=0, of=3, median=None, restricted_mean=10.0, values=[None] * 3)
    assert (when(never).text, when(never).sort) == ("never in 3 of 3", "Infinity")
    censored = TimeToTarget(
        reached=2, of=3, median=40.0, restricted_mean=50.0, values=[30.0, 40.0, None]
    )
    assert when(censored).text == "40 (never in 1 of 3)"
    told = PairedDifference(
        mean=-0.1, low=-0.2, high=0.0, p=0.05, seeds=3, pictures=None, values=[], sd=None, seed_error=None, picture_error=None,
        t_test_p=None, wilcoxon_p=None, effect_size=None, probability_of_improvement=0.0, bootstrap=None,
    )  # fmt: skip
    assert difference(told).text == "−0.100 (−0.200 to +0.000)"


def test_drawing_and_writing_need_no_torch(study: Study, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from arelu_tl.analysis.comparison import compare_runs\n"
        "from arelu_tl.records.runs import find_runs\n"
        "from arelu_tl.render.report.report import write_report_files\n"
        f"runs = find_runs(Path({str(study.path)!r}))\n"
        f"write_report_files(compare_runs(runs), runs, Path({str(tmp_path)!r}), title='t')\n"
        "print(*(m for m in ('torch', 'torchvision', 'timm', 'matplotlib.pyplot') if m in sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []
