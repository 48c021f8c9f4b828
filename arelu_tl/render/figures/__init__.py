"""Figures, readable in greyscale and for the colour-blind: arms differ in colour, line and marker. None of them needs torch.

A ``*_figure`` function draws and returns; ``canvas.png`` and ``canvas.svg`` make a file's content of what it returned.
"""

from arelu_tl.render.figures.canvas import png, svg
from arelu_tl.render.figures.confusion import confusion_figure, most_confused
from arelu_tl.render.figures.convergence import convergence_figure
from arelu_tl.render.figures.curves import gallery_figure, site_curves_figures
from arelu_tl.render.figures.gradients import gradients_figure
from arelu_tl.render.figures.mistakes import mistakes_figure
from arelu_tl.render.figures.plan import draw_sites
from arelu_tl.render.figures.rates import rates_figure
from arelu_tl.render.figures.reproduction import reproduction_figure
from arelu_tl.render.figures.sites import SiteValues, activations_figure, read_site_values, site_values_figure

__all__ = [
    "SiteValues",
    "activations_figure",
    "confusion_figure",
    "convergence_figure",
    "draw_sites",
    "gallery_figure",
    "gradients_figure",
    "mistakes_figure",
    "most_confused",
    "png",
    "rates_figure",
    "read_site_values",
    "reproduction_figure",
    "site_curves_figures",
    "site_values_figure",
    "svg",
]
