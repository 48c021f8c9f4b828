"""Does AReLU make fine-tuning on your pictures converge faster? The public API; every name loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arelu_tl.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from arelu_tl.activation import AReLU as AReLU
    from arelu_tl.analysis import Comparison as Comparison
    from arelu_tl.analysis import compare as compare
    from arelu_tl.exporting.report import ExportReport as ExportReport
    from arelu_tl.records.config import FinetuneConfig as FinetuneConfig
    from arelu_tl.records.runs import RunRecord as RunRecord
    from arelu_tl.records.runs import StudyRecord as StudyRecord
    from arelu_tl.records.runs import load_run as load_run
    from arelu_tl.study.card import ModelCard as ModelCard
    from arelu_tl.study.export import export as export
    from arelu_tl.study.finetune import finetune as finetune
    from arelu_tl.study.reload import load_model as load_model
    from arelu_tl.surgery import Site as Site
    from arelu_tl.surgery import SurgeryReport as SurgeryReport
    from arelu_tl.surgery import convert as convert
    from arelu_tl.surgery import find_sites as sites  # noqa: F401 (listed in _HOMES)

# Importing torch and timm takes seconds; `import arelu_tl` takes none of them.
_HOMES = {
    "AReLU": "arelu_tl.activation",
    "Comparison": "arelu_tl.analysis",
    "ExportReport": "arelu_tl.exporting.report",
    "FinetuneConfig": "arelu_tl.records.config",
    "ModelCard": "arelu_tl.study.card",
    "RunRecord": "arelu_tl.records.runs",
    "Site": "arelu_tl.surgery",
    "StudyRecord": "arelu_tl.records.runs",
    "SurgeryReport": "arelu_tl.surgery",
    "compare": "arelu_tl.analysis",
    "convert": "arelu_tl.surgery",
    "export": "arelu_tl.study.export",
    "finetune": "arelu_tl.study.finetune",
    "load_model": "arelu_tl.study.reload",
    "load_run": "arelu_tl.records.runs",
    "sites": "arelu_tl.surgery:find_sites",
}
__all__ = ["__version__", *_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
