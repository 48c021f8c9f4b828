"""Does AReLU make fine-tuning on your pictures converge faster?

This is the public API; every name loads on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arelu_tl.lazy import lazy_names
from arelu_tl.version import __version__

if TYPE_CHECKING:
    from arelu_tl.activation.arelu import AReLU as AReLU
    from arelu_tl.analysis.comparison import compare as compare
    from arelu_tl.analysis.results import Comparison as Comparison
    from arelu_tl.experiment.finetune import finetune as finetune
    from arelu_tl.exporting.export import export as export
    from arelu_tl.exporting.report import ExportReport as ExportReport
    from arelu_tl.models.load import load_model as load_model
    from arelu_tl.records.card import ModelCard as ModelCard
    from arelu_tl.records.config import FinetuneConfig as FinetuneConfig
    from arelu_tl.records.runs import RunRecord as RunRecord
    from arelu_tl.records.runs import StudyRecord as StudyRecord
    from arelu_tl.records.runs import load_run as load_run
    from arelu_tl.surgery.convert import SurgeryReport as SurgeryReport
    from arelu_tl.surgery.convert import convert as convert
    from arelu_tl.surgery.sites import Site as Site
    from arelu_tl.surgery.sites import find_sites as sites  # noqa: F401 (listed in _HOMES)

# Importing torch and timm takes seconds, so `import arelu_tl` imports neither.
_HOMES = {
    "AReLU": "arelu_tl.activation.arelu",
    "Comparison": "arelu_tl.analysis.results",
    "ExportReport": "arelu_tl.exporting.report",
    "FinetuneConfig": "arelu_tl.records.config",
    "ModelCard": "arelu_tl.records.card",
    "RunRecord": "arelu_tl.records.runs",
    "Site": "arelu_tl.surgery.sites",
    "StudyRecord": "arelu_tl.records.runs",
    "SurgeryReport": "arelu_tl.surgery.convert",
    "compare": "arelu_tl.analysis.comparison",
    "convert": "arelu_tl.surgery.convert",
    "export": "arelu_tl.exporting.export",
    "finetune": "arelu_tl.experiment.finetune",
    "load_model": "arelu_tl.models.load",
    "load_run": "arelu_tl.records.runs",
    "sites": "arelu_tl.surgery.sites:find_sites",
}
__all__ = ["__version__", *_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
