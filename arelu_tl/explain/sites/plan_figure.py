"""Draw the plan of surgery for each site. Imports matplotlib, which the table of sites avoids."""

from __future__ import annotations

from math import prod
from pathlib import Path

from arelu_tl.records.storage import write_bytes
from arelu_tl.render.figures.canvas import drawable, house_style, new_figure, png
from arelu_tl.surgery.convert import SurgeryReport

_KINDS = {"module": ("#0072B2", "o"), "shared": ("#D55E00", "s"), "functional": ("#009E73", "^")}


@house_style
def draw_sites(report: SurgeryReport, path: Path, *, title: str) -> None:
    """Draw alpha0 of every site by depth, with the site's size behind it.

    Sites that stay ReLUs are crosses at 0.

    Raises:
        StorageError: ``path`` cannot be written.
    """
    figure = new_figure(11, 4.6, layout="constrained")
    axes = figure.subplots()
    sites = [p for p in report.sites if p.site.runs]
    size = axes.twinx()
    size.bar(range(len(sites)), [prod(p.site.shape[1:]) for p in sites], color="0.88", width=1.0)
    size.set(ylabel="elements a picture (grey)", yscale="log")
    # The bars are on the second axes; draw the points over them.
    axes.set_zorder(size.get_zorder() + 1)
    axes.patch.set_visible(False)
    for kind, (color, marker) in _KINDS.items():
        at = [i for i, p in enumerate(sites) if p.status == "replaced" and p.site.kind == kind]
        if at:
            axes.plot(
                at,
                [sites[i].alpha0 for i in at],
                linestyle="",
                marker=marker,
                color=color,
                markersize=5,
                label=kind,
            )
    left = [i for i, p in enumerate(sites) if p.status != "replaced"]
    if left:
        axes.plot(
            left, [0.0] * len(left), linestyle="", marker="x", color="0.2", label="stays a ReLU"
        )
    axes.set(
        xlabel="site, in the order of the forward pass",
        ylabel="alpha0 (slope of negatives before scale)",
        ylim=(-0.03, 1.02),
    )
    axes.grid(True)
    size.spines["right"].set_visible(True)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
    figure.suptitle(
        f"{drawable(title, 80)}: init {report.init}, {report.replaced} of {report.executed} sites",
        parse_math=False,
    )
    write_bytes(path, png(figure))
