"""The reports of ``arelu-tl explain activations``: a run's sites, or the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from arelu_tl.records.curves import RunCurves, Shape
from arelu_tl.records.storage import make_folder, write_bytes, write_json
from arelu_tl.render.console import Shown, line
from arelu_tl.render.figures import SiteValues, gallery_figure, png, site_curves_figures
from arelu_tl.render.grid import Column, Grid

ACTIVATIONS, GALLERY = "activations", "gallery"
_MOST_COLUMNS = 4


def curves_report(curves: RunCurves, written: Sequence[Path]) -> list[Shown]:
    """A row for each site, and in a sentence how far they moved."""
    names = list(dict.fromkeys(name for site in curves.sites for name in site.learnt))
    if len(names) > _MOST_COLUMNS:  # which the file has
        names = []
    table = Grid(
        [
            Column("#"),
            Column("site", "name"),
            Column("cap", gives_way=3),
            Column("curves", gives_way=4),
            *(Column(name, gives_way=1) for name in names),
            Column("slope x < 0", gives_way=2),
            Column("slope x > 0", gives_way=2),
            Column("largest change"),
        ]
    )
    for number, site in enumerate(curves.sites):
        moved = (site.learnt.get(name) for name in names)
        left, right = site.slopes(curves.x)
        table.add(
            str(number), site.name, "-" if site.cap is None else f"{site.cap:g}", str(site.channels),
            *("-" if m is None else f"{m[0]:.4g} → {m[1]:.4g}" for m in moved),
            f"{left:.4g}", f"{right:.4g}", f"{site.change:.2g}",
        )  # fmt: skip
    files = f"wrote {', '.join(map(str, written))}"
    return [table, "", line(found_in_curves(curves), style="bold"), files]


def found_in_curves(curves: RunCurves) -> str:
    """How far the curves moved from where they started."""
    most = max(curves.sites, key=lambda site: site.change)
    reach = f"for x from {curves.x[0]:g} to {curves.x[-1]:g}"
    if not curves.step:
        return "These are the weights of the start, none of the training's was better: name a checkpoint to see what was learnt."
    if not most.change:
        return f"None of the {len(curves.sites)} activations of {curves.arm} differs from its start ({reach})."
    middle = median(site.change for site in curves.sites)
    return (
        f"By step {curves.step} the {len(curves.sites)} activations of {curves.arm} have moved from their start by at most "
        f"{middle:.2g} at the median site and {most.change:.2g} at the one that moved most, {most.name} ({reach})."
    )


def write_curves(curves: RunCurves, course: SiteValues | None, folder: Path, title: str) -> list[Path]:
    """Write activations.png (of many sites activations-2.png and so on too) and activations.json.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    make_folder(folder)
    written = []
    for number, figure in enumerate(site_curves_figures(curves, course, title), start=1):
        written.append(folder / (f"{ACTIVATIONS}.png" if number == 1 else f"{ACTIVATIONS}-{number}.png"))
        write_bytes(written[-1], png(figure))
    written.append(folder / f"{ACTIVATIONS}.json")
    write_json(written[-1], {**curves.to_json(), "found": found_in_curves(curves)}, indent=None)
    return written


def gallery_report(shapes: Sequence[Shape], written: Sequence[Path]) -> list[Shown]:
    """A row for each activation."""
    table = Grid(
        [Column("activation", "name"), Column("learns"), Column("formula", "text"), Column("source", "text", gives_way=1)]
    )
    for shape in shapes:
        table.add(shape.title, str(shape.parameters or "-"), shape.formula, shape.source)
    return [table, "", f"wrote {', '.join(map(str, written))}"]


def write_gallery(shapes: Sequence[Shape], folder: Path) -> list[Path]:
    """Write gallery.png.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    make_folder(folder)
    path = folder / f"{GALLERY}.png"
    write_bytes(path, png(gallery_figure(shapes)))
    return [path]
