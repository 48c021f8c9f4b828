"""Every table at every width: no number is cut, no line is wider than the terminal, and what is left out is said."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from run_folders import draw_correct, write_run

import arelu_tl
from arelu_tl.analysis.comparison import compare
from arelu_tl.analysis.results import Spread
from arelu_tl.cli import check
from arelu_tl.data.folder import PictureFolder
from arelu_tl.explain.activations import show as curves
from arelu_tl.explain.activations.report import RunCurves, Shape, SiteCurve
from arelu_tl.explain.features import show as features
from arelu_tl.explain.gradients import show as gradients
from arelu_tl.explain.gradients.report import (
    GradientPoint,
    GradientReport,
    SiteGradient,
    WeightGradient,
)
from arelu_tl.explain.sites import show as inspection
from arelu_tl.explain.sites import survey_table as survey
from arelu_tl.explain.sites.inspection import Inspection
from arelu_tl.explain.sites.survey_table import SurveyRow, read_survey
from arelu_tl.exporting import tables as export_tables
from arelu_tl.exporting.report import ExportReport, Timing
from arelu_tl.models import tables as use_tables
from arelu_tl.models.evaluate import EvaluationReport
from arelu_tl.models.predict import Prediction
from arelu_tl.paper import show as reproduction
from arelu_tl.paper.results import Column as Rate
from arelu_tl.paper.results import Entry, Reproduction
from arelu_tl.render import tables
from arelu_tl.render.grid import Column, Grid
from arelu_tl.surgery.calibrate import Drift
from arelu_tl.surgery.convert import SurgeryReport
from arelu_tl.surgery.plan import PlannedSite
from arelu_tl.surgery.sites import Site

WIDTHS = (20, 60, 80, 100, 120, 160)
# Of sixty letters, deep names of sites, wide letters, two that only the middle tells apart.
NAMES = [
    "a class of butterflies whose name goes on for sixty letters!",
    "stages.3.blocks.11.conv_branch.squeeze_and_excitation.activation.module.0",
    "stages.3.blocks.12.conv_branch.squeeze_and_excitation.activation.module.0",
    "日本語のとても長い分類の名前がここに入っていますから幅が二倍になる",
    "e\u0301" * 40,
    "[red]x[/] :smile: [v1]",
]
ARMS = ("relu", "arelu", "leaky", "arelu-frozen")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("study")
    stream = np.random.default_rng(0)
    for lr in (1e-5, 3e-4, 1e-2):
        for seed in range(3):
            for arm in ARMS:
                right = draw_correct(stream, (0.1, 0.4, 0.5 + 0.05 * seed), 120)
                write_run(
                    place,
                    arm,
                    correct=right,
                    lr=lr,
                    seed=seed,
                    drift=None if arm == "relu" else 12.5,
                )
    return compare([place])


def evaluation(classes: int) -> EvaluationReport:
    stream = np.random.default_rng(0)
    names = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(classes)]
    labels, predicted = stream.integers(0, classes, (2, 40_000))
    predicted[:30_000] = labels[:30_000]
    chance = np.full(len(labels), 0.5)
    return EvaluationReport(
        classes=names, root=Path("x"), paths=["p"] * len(labels), labels=labels, predicted=predicted, probability=chance,
        label_log_probability=np.log(chance), label_rank=(labels != predicted).astype(np.int64), rejected=[],
    )  # fmt: skip


def surgery() -> SurgeryReport:
    sites = [
        PlannedSite(
            Site(
                name, (name, f"{name}.again"), "shared", "capped-relu", 6.0, True, role="squeeze-excite", call=n, calls=12,
                preceding=f"{name}.bn (batch_norm)", shape=(1, 2048, 112, 112), negative_share=0.4567,
            ),
            "unmatched" if n == 3 else "replaced", 0.01234 * n, 1.999, 0.5317, 2048,
        )
        for n, name in enumerate(NAMES)
    ]  # fmt: skip
    return SurgeryReport(
        "arelu", "calibrated", sites, 24576, drift=Drift(0.25, 0.875, 64), strength=0.0123
    )


def folder() -> Any:
    """As much of a PictureFolder as its tables read; scanning one takes a second."""
    counts = {
        "train": {name: 10**n for n, name in enumerate(NAMES)},
        "validation": dict.fromkeys(NAMES[:2], 7),
    }
    rejected = [
        SimpleNamespace(path=f"train/{name}/0.png", reason=f"cannot identify {name}")
        for name in NAMES
    ]
    copies = [
        SimpleNamespace(
            paths=[f"train/{name}/{i}.png" for i in range(6)], exact=True, across_splits=True
        )
        for name in NAMES
    ]
    shape: PictureFolder = SimpleNamespace(  # type: ignore[assignment]
        classes=NAMES, layout="flat", counts=lambda: counts, rejected=rejected, copies=copies
    )
    return shape


def learnt_curves() -> RunCurves:
    x = np.linspace(-3, 3, 7)
    learnt = {"alpha": (0.01234, 0.05678), "beta": (2.0, 1.2345)}
    sites = [
        SiteCurve(name, 6.0, 1.0, 2048, x, x * (1 + n / 7), x, x, learnt)
        for n, name in enumerate(NAMES)
    ]
    return RunCurves("m", "arelu", 12345, x, sites)


def gradient_report() -> GradientReport:
    sites = [
        SiteGradient(name, 1e-8 * 7**n, 0.1, 0.1234, 0.4567, 0.98765)
        for n, name in enumerate(NAMES)
    ]
    weights = [WeightGradient(name, 0.1, 0.1, 1.234e-5, 0.1, 0.1) for name in NAMES]
    points = [
        GradientPoint(arm, step, "checkpoint step-12345", sites, weights)
        for arm in ARMS[:2]
        for step in (0, 12345)
    ]
    return GradientReport("m", "d", 1e-3, 0, 8, 2, 0.01, points)


def feature_report() -> Any:
    told = SimpleNamespace(
        negative_share=0.4567, zero_share=0.1, attention=1.234, attention_negative=None, attention_positive=1.5678,
        energy_before=1.234e-5, energy_after=123456.0,
    )  # fmt: skip
    return SimpleNamespace(
        shown=[
            (SimpleNamespace(title=name, statistics=dict.fromkeys(ARMS, told)), None)
            for name in NAMES
        ]
    )


def reproduced(rates: tuple[float, ...], *, transfer: bool) -> Reproduction:
    def entry(name: str, mean: float) -> Entry:
        spread = Spread(mean, 0.0123, [mean])
        return Entry(name, [0, 1], spread, spread, spread, spread, 1, {})

    groups = {"tanh": "fixed", "celu": "fixed", "slaf": "learnable", "arelu": "learnable"}
    entries = {name: entry(name, 0.0987 + 0.3 * i) for i, name in enumerate(groups)}
    best = {"fixed": "tanh", "learnable": "slaf"}
    columns = [
        Rate("a-to-b" if transfer else "adam", "adam", lr, entries, best, {"fixed": 0.1234}, 1, 19)
        for lr in rates
    ]
    return Reproduction(
        list(groups), groups, {name: name.title() for name in groups}, columns, [], transfer
    )


def _export_timings() -> Grid:
    timings = [Timing(b, 1.5 * b, 12345.6 * b, 0.123, 0.01, 123.45, 1000) for b in (1, 32)]
    return export_tables._timings(
        ExportReport(Path("x"), {}, "", baseline=NAMES[0], timings=timings)
    )


def _inspection() -> Inspection:
    report = surgery()
    early = replace(report, drift_uncalibrated=Drift(123456.0, 0.5, 64), init="near-relu")
    return Inspection(report, "random", 11, None, {"calibrated": report, "near-relu": early}, {})


# Every function that makes a table, and tables that it made.
TABLES: dict[str, Callable[[Any], list[Any]]] = {
    "render.tables.rates_table": lambda told: [tables.rates_table(told)],
    "render.tables.best_table": lambda told: [tables.best_table(told)],
    "exporting.tables._timings": lambda _: [_export_timings()],
    "models.tables._per_class": lambda _: [use_tables._per_class(evaluation(12))],
    "models.tables._confusion": lambda _: [
        use_tables._confusion(told, told.classes) for told in map(evaluation, (2, 5, 20))
    ],
    "models.tables.predictions_table": lambda _: [
        use_tables.predictions_table(
            [Prediction(f"{name}/0.png", NAMES, [0.123 * n for n in range(6)]) for name in NAMES]
        )
    ],
    "explain.sites.show.sites_table": lambda _: [inspection.sites_table(surgery())],
    "explain.sites.show._drift_table": lambda _: [inspection._drift_table(_inspection())],
    "cli.check._classes_table": lambda _: [check._classes_table(folder())],
    "cli.check._rejected_table": lambda _: [check._rejected_table(folder())],
    "cli.check._copies_table": lambda _: [check._copies_table(folder().copies)],
    "explain.activations.show.curves_report": lambda _: curves.curves_report(learnt_curves(), []),
    "explain.activations.show.gallery_report": lambda _: curves.gallery_report(
        [Shape(n, n, f"{n} 0.12345", 12, n, *np.zeros((3, 2))) for n in NAMES], []
    ),
    "explain.gradients.show.gradients_report": lambda _: gradients.gradients_report(
        gradient_report(), []
    ),
    "explain.features.show._table": lambda _: [features._table(feature_report())],
    "explain.sites.survey_table.survey_table": lambda _: [
        survey.survey_table(read_survey()[1][:40]),
        survey.survey_table(
            [SurveyRow(name, 12345, 1, 2, 3, 4, 5, 6, refusal=f"why {name} not") for name in NAMES]
        ),
    ],
    "paper.show._terminal_table": lambda _: [
        reproduction._terminal_table(told, told.columns)
        for told in (
            reproduced((1e-2, 1e-3, 1e-4, 1e-5), transfer=False),
            reproduced((1e-5,), transfer=True),
        )
    ],
}


def made_tables() -> Iterator[str]:
    """The functions that make a grid, from the source."""
    root = Path(arelu_tl.__file__).parent
    for path in root.rglob("*.py"):
        for function in ast.parse(path.read_text()).body:
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(f, ast.Name) and f.id == "Grid" for f in calls
            ):
                yield ".".join((*path.relative_to(root).with_suffix("").parts, function.name))


def test_no_table_is_forgotten_here() -> None:
    assert set(made_tables()) == set(TABLES)


def left_out(shown: str) -> list[str]:
    told = re.search(r"\d+ columns? left out: (.*?); --wide shows them", " ".join(shown.split()))
    return told[1].split(", ") if told else []


def numbers(grid: Grid, without: list[str]) -> Counter[str]:
    """Every word with a digit in it of the columns of numbers, as often as there are."""
    told: Counter[str] = Counter()
    for number, column in enumerate(grid.columns):
        if column.kind == "number" and column.name not in without:
            previous = ""
            for row in grid._rows:
                text = row.cells[number][0]
                if not (column.once and text == previous):
                    told.update(word for word in text.split() if any(c.isdigit() for c in word))
                previous = text
    return told


@pytest.mark.parametrize("name", TABLES)
def test_no_number_is_cut_and_no_line_is_too_long(name: str, comparison: Any) -> None:
    grids = [item for item in TABLES[name](comparison) if isinstance(item, Grid)]
    assert grids
    for grid in grids:
        for width in WIDTHS:
            for ascii_only in (False, True):
                lines = [line.plain for line in grid.lines(width, ascii_only=ascii_only)]
                assert max(map(cell_len, lines)) <= width, (width, max(lines, key=cell_len))
                shown = "\n".join(lines)
                gone = left_out(shown)
                assert set(gone) <= {column.name for column in grid.columns if column.gives_way}
                assert not numbers(grid, gone) - Counter(shown.split()), (width, shown)
                assert not ascii_only or not {"…", "─"} & set(shown)
        whole = grid.lines(None)
        wide = "\n".join(line.plain for line in whole)
        assert not left_out(wide)
        assert wide == "\n".join(
            line.plain for line in grid.lines(max(line.cell_len for line in whole))
        )
        assert all(column.name in wide for column in grid.columns)
        assert all(text in wide for row in grid._rows for text, _ in row.cells)


@pytest.mark.parametrize(
    "name",
    ["render.tables.rates_table", "render.tables.best_table", "explain.sites.show.sites_table"],
)
def test_what_a_table_is_for_stays_a_table_at_eighty_columns(name: str, comparison: Any) -> None:
    (grid,) = TABLES[name](comparison)
    lines = [line.plain for line in grid.lines(80)]
    header = " ".join(
        lines[: next(number for number, line in enumerate(lines) if set(line) == {"─"})]
    )
    assert all(
        word in header
        for column in grid.columns
        if not column.gives_way
        for word in column.name.split()
    )


def test_columns_leave_in_the_order_that_they_declare() -> None:
    grid = Grid(
        [Column("a"), Column("b", gives_way=1), Column("c", gives_way=3), Column("d", gives_way=2)]
    )
    grid.add(*["123456789"] * 4)
    assert [left_out("\n".join(line.plain for line in grid.lines(width))) for width in (42, 41, 30, 20)] == [
        [], ["c"], ["c", "d"], ["c", "d"],
    ]  # fmt: skip
    assert [line.plain for line in Grid([Column("a"), Column("b")]).lines(20)] == ["a  b", "────"]
    pairs = Grid(
        [Column("a"), Column("b", gives_way=2), Column("c", gives_way=1), Column("d", gives_way=2)]
    )
    pairs.add(*["123456789"] * 4)
    assert left_out("\n".join(line.plain for line in pairs.lines(41))) == ["b", "d"]
    empty = Grid(pairs.columns)
    empty.add("123456789", "123456789", "-", "123456789")
    assert left_out("\n".join(line.plain for line in empty.lines(33))) == ["c"]


def test_names_that_would_look_alike_when_shortened_are_broken_instead() -> None:
    grid = Grid([Column("site", "name"), Column("n")])
    for number, name in enumerate(NAMES[1:3]):
        grid.add(name, str(number))
    shown = "".join(line.plain for line in grid.lines(20))
    assert "…" not in shown
    assert "blocks.11.conv_branch" in "".join(line.plain[:17].strip() for line in grid.lines(20))
    single = Grid(grid.columns)
    single.add(NAMES[1], "0")
    assert (
        single.lines(20)[-1].plain.startswith("stages.3.bl…odule.0")
        or "…" in single.lines(20)[-1].plain
    )


def test_a_value_that_is_shown_once_stands_in_every_block() -> None:
    grid = Grid(
        [Column("lr", once=True), Column("x", "name"), Column("a long heading of a number")]
    )
    for value in ("1", "2"):
        grid.add("0.001", value, "12345678901234567890 12345678901234567890")
    assert sum("0.001" in line.plain for line in grid.lines(60)) == 1
    assert sum("0.001" in line.plain for line in grid.lines(40)) == 2


def test_decimal_points_stand_below_each_other() -> None:
    grid = Grid([Column("lr"), Column("shape")])
    for lr, shape in (("0.1", "64x7x7"), ("0.0001", "512x14x14"), ("never", "-"), ("12", "3x1x1")):
        grid.add(lr, shape)
    rows = [line.plain for line in grid.lines()][2:]
    assert rows == [
        " 0.1        64x7x7",
        " 0.0001  512x14x14",
        "  never          -",
        "12           3x1x1",
    ]


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Grid([Column("a"), Column("b")]).add("x")
