"""Surgery, pictures, environments and configurations, as the run and study folders record them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.analysis.results import Comparison
from arelu_tl.errors import ArtefactError
from arelu_tl.records.runs import DATASET, ENVIRONMENT, RUN_CONFIG, STUDY_CONFIG, RunRecord
from arelu_tl.records.storage import read_json
from arelu_tl.render.figures.sites import read_site_values
from arelu_tl.render.report.table import Column, Table, Value, number, text, words
from arelu_tl.render.text import as_options

# The page shows the beginning of a long list (rejected files, classes) and names the file with the
# rest.
MOST_LISTED = 1000


@dataclass(frozen=True)
class Operated:
    """What surgery did to one arm, taken from the arm's first run."""

    arm: str
    run: str
    sites: Table


def surgery_tables(
    comparison: Comparison, runs: Mapping[str, RunRecord]
) -> tuple[Table, list[Operated]]:
    """A row for each arm, and a table of the sites of each."""
    columns = [
        *words("arm", "init"),
        Column("sites replaced"),
        Column("sites"),
        Column("parameters added"),
        Column(
            "drift",
            hint="relative change of the backbone’s outputs by surgery alone, on training pictures",
        ),
        Column("drift before", hint="before BatchNorm was put right"),
        Column(
            "top-1 kept", hint="share of pictures on which the pretrained net’s first guess stayed"
        ),
        Column("strength"),
        Column("drift budget"),
        *words("budget kept", "BatchNorm"),
    ]
    rows, operated = [], []
    for arm in comparison.arms:
        first = runs[next(cell.runs[0] for cell in comparison.cells if cell.arm == arm)]
        report = first.surgery
        if arm == BASELINE or report is None:
            continue
        sites = report.get("sites") or []
        drift, before = report.get("drift") or {}, report.get("drift_before_calibration") or {}
        kept = report.get("budget_kept")
        rows.append(
            [
                text(arm),
                text(report.get("init")),
                number(sum(site.get("status") == "replaced" for site in sites), "d"),
                number(len(sites), "d"),
                number(report.get("parameters_added"), "d"),
                number(drift.get("relative"), ".3g"),
                number(before.get("relative"), ".3g"),
                number(drift.get("top1_agreement"), ".0%"),
                number(report.get("strength"), ".3g"),
                number(report.get("drift_budget"), ".3g"),
                text(None if kept is None else "yes" if kept else "no"),
                text(report.get("batchnorm")),
            ]
        )
        operated.append(Operated(arm, first.path.name, _sites_table(arm, first, sites)))
    return Table("What surgery did", columns, rows), operated


def _sites_table(arm: str, run: RunRecord, sites: Sequence[dict[str, Any]]) -> Table:
    values = read_site_values(run) if run.config.arm == "arelu" else None
    at = {} if values is None else {name: number for number, name in enumerate(values.names)}
    columns = [
        Column("#"),
        *words("site", "kind", "operator", "after", "shape"),
        Column(
            "x\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}0",
            hint="share of negative inputs on training pictures",
        ),
        *words("status"),
        *(Column(heading) for heading in ("alpha0", "beta0", "scale", "cap", "pairs")),
    ]
    if values is not None:
        columns += [Column("alpha, learnt"), Column("beta, learnt")]
    rows = []
    for count, site in enumerate(sites):
        role = site.get("role") or "activation"
        row = [
            number(count, "d"),
            text(site.get("name")),
            text(
                ", ".join(
                    str(part)
                    for part in (site.get("kind"), None if role == "activation" else role)
                    if part
                )
            ),
            text(site.get("operator")),
            text(site.get("preceding")),
            text(" × ".join(map(str, (site.get("shape") or [])[1:]))),
            number(site.get("negative_share"), ".0%"),
            text(site.get("status")),
            *(number(site.get(key), ".4g") for key in ("alpha0", "beta0", "scale", "cap")),
            number(site.get("num_parameters"), "d"),
        ]
        if values is not None:
            place = at.get(str(site.get("name")))
            row += [
                number(None if place is None else float(parameter[place, -1]), ".4f")
                for parameter in (values.alpha, values.beta)
            ]
        rows.append(row)
    return Table(f"Sites of {arm}", columns, rows)


@dataclass(frozen=True)
class Pictures:
    """The classes and files of a folder of pictures, from one dataset.json."""

    fingerprint: str
    layout: str
    classes: list[str]
    ignored: int
    counts: Table
    rejected: Table
    duplicates: list[list[str]]
    more_duplicates: int


def datasets(runs: Sequence[RunRecord]) -> list[Pictures]:
    """The distinct datasets of all studies that the runs belong to.

    Raises:
        ArtefactError: a dataset.json is corrupt.
    """
    found = {}
    for study in studies(runs):
        if (study / DATASET).exists():
            dataset = read_json(study / DATASET)
            found[str(dataset.get("fingerprint"))] = _pictures(dataset)
    return list(found.values())


def _pictures(dataset: dict[str, Any]) -> Pictures:
    counts: dict[str, dict[str, int]] = dataset.get("counts", {})
    classes = [str(name) for name in dataset.get("classes", [])]
    total = [text("all"), *(number(sum(split.values()), "d") for split in counts.values())]
    rows = [
        [text(name), *(number(split.get(name, 0), "d") for split in counts.values())]
        for name in classes[:MOST_LISTED]
    ]
    rejected = [[text(file["path"]), text(file["reason"])] for file in dataset.get("rejected", [])]
    duplicates = dataset.get("duplicates_across_splits", [])
    return Pictures(
        fingerprint=str(dataset.get("fingerprint")),
        layout=str(dataset.get("layout")),
        classes=classes,
        ignored=int(dataset.get("ignored_files", 0)),
        counts=Table(
            "Pictures",
            [*words("class"), *map(Column, counts)],
            [total, *rows],
            _rest(classes, rows),
        ),
        rejected=Table(
            "Rejected files",
            words("file", "reason"),
            rejected[:MOST_LISTED],
            _rest(rejected, rejected[:MOST_LISTED]),
        ),
        duplicates=duplicates[:MOST_LISTED],
        more_duplicates=max(0, len(duplicates) - MOST_LISTED),
    )


def _rest(every: Sequence[Any], shown: Sequence[Any]) -> str:
    return f"{len(every) - len(shown)} more are in {DATASET}." if len(every) > len(shown) else ""


def environments(runs: Sequence[RunRecord]) -> Table:
    """A column for each distinct environment in which runs were trained.

    Raises:
        ArtefactError: an environment.json is corrupt.
    """
    found: dict[tuple[tuple[str, str], ...], int] = Counter()
    for run in runs:
        if (run.path / ENVIRONMENT).exists():
            found[tuple(_flat(read_json(run.path / ENVIRONMENT)).items())] += 1
    keys = list(dict.fromkeys(key for environment in found for key, _ in environment))
    columns = [*words("what")] + [
        Column(f"{count} {'run' if count == 1 else 'runs'}", numeric=False)
        for count in found.values()
    ]
    recorded = [dict(each) for each in found]
    return Table(
        "Environments",
        columns,
        [[text(key), *(text(each.get(key)) for each in recorded)] for key in keys],
    )


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in environment.items():
        if isinstance(value, dict):
            flat |= {str(name): str(version) for name, version in value.items()}
        elif value is not None:
            flat[key] = str(value)
    return flat


@dataclass(frozen=True)
class Configuration:
    """A YAML file: the end of its path, and its content."""

    path: str
    content: str


def configurations(runs: Sequence[RunRecord], *, most: int = 12) -> list[Configuration]:
    """The study.yaml of every study; outside of studies, the first run.yaml of each arm.

    Raises:
        ArtefactError: a file cannot be read.
    """
    paths = []
    alone: dict[tuple[Path, str], Path] = {}
    inside = {study for study in studies(runs) if (study / STUDY_CONFIG).exists()}
    paths += [study / STUDY_CONFIG for study in sorted(inside)]
    for run in runs:
        home = run.path.resolve().parent
        if home not in inside:
            alone.setdefault((home, run.config.arm), run.path / RUN_CONFIG)
    return [_configuration(path) for path in [*paths, *alone.values()][:most]]


def _configuration(path: Path) -> Configuration:
    try:
        return Configuration("/".join(path.parts[-2:]), path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None


def studies(runs: Sequence[RunRecord]) -> list[Path]:
    """The folders that contain the runs."""
    return sorted({run.path.resolve().parent for run in runs})


def not_counted(comparison: Comparison) -> Table:
    """Every run that is left out of the comparison, with the reason."""
    reasons: dict[str, str] = defaultdict(str)
    for paths, reason in (
        (comparison.unpaired, "no partner at its rate and seed"),
        (comparison.unfinished, "behind the finished runs of its rate"),
        (comparison.waiting, "not evaluated yet"),
        (comparison.repeated, "another run stands for the same cell"),
    ):
        reasons |= dict.fromkeys(paths, reason)
    reasons |= {
        failure.path: f"failed: {as_options(failure.reason)}" for failure in comparison.failed
    }
    return Table(
        "Runs not counted",
        words("run", "reason"),
        [[Value(path), Value(why)] for path, why in sorted(reasons.items())],
    )
