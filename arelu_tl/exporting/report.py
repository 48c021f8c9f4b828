"""The report of an export."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arelu_tl.exporting.fold import FoldReport
from arelu_tl.exporting.proof import Proof


@dataclass(frozen=True)
class AccuracyChange:
    """What fewer bits cost, measured on validation pictures.

    Attributes:
        pictures: their number.
        before, after: top-1 accuracy 0..1 of the trained model and of the file.
        same: share of the pictures, 0..1, on which both name the same class.
    """

    pictures: int
    before: float
    after: float
    same: float


@dataclass(frozen=True)
class Timing:
    """Times of the export and of the baseline's, measured in turns.

    Attributes:
        batch: pictures per batch.
        milliseconds, baseline_milliseconds: median time of a batch.
        ratio: median of the rounds' ratios, export / baseline.
        least, greatest: of those ratios.
        rounds: their number.
    """

    batch: int
    milliseconds: float
    baseline_milliseconds: float
    ratio: float
    least: float
    greatest: float
    rounds: int

    @property
    def pictures_per_second(self) -> float:
        return 1000 * self.batch / self.milliseconds


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and how it was proved.

    Attributes:
        path: the folder or file written.
        files: {name: size in bytes}.
        sha256: of the weights, or of the file.
        run: the exported run.
        form: the form of the model: "trained", "frozen" or "timm" (see ``ModelCard``); "frozen"
            for an ONNX or pt2 file.
        unlike_timm: why timm alone cannot build the model in a folder; None where it can, and for
            a file.
        proofs: how near its answers are to the trained model's.
        fold: which gains of frozen activations were folded; None where folding was not asked for.
        accuracy: what fewer bits cost; None for float32.
        baseline: the model that it was timed with; None where nothing was timed.
        timings: of batches of 1 and 32.
        url: of the commit on the hub; None where nothing was uploaded.
    """

    path: Path
    files: dict[str, int]
    sha256: str
    run: Path | None = None
    form: str = "frozen"
    unlike_timm: str | None = None
    proofs: list[Proof] = field(default_factory=list)
    fold: FoldReport | None = None
    accuracy: AccuracyChange | None = None
    baseline: str | None = None
    timings: list[Timing] = field(default_factory=list)
    url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        values = asdict(self)
        return {
            **values,
            "path": str(self.path),
            "run": str(self.run) if self.run is not None else None,
        }
