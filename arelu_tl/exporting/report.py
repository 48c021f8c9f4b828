"""What an export says of itself."""

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
        pictures: how many.
        before, after: top-1 accuracy 0..1 of the trained model and of the file.
        same: share of the pictures, 0..1, on which both name the same class.
    """

    pictures: int
    before: float
    after: float
    same: float


@dataclass(frozen=True)
class Timing:
    """The export beside the baseline's, run in turns.

    Attributes:
        batch: pictures at a time.
        milliseconds, baseline_milliseconds: median time of a batch.
        ratio: median of the rounds' ratios, export / baseline.
        least, greatest: of those ratios.
        rounds: how many.
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
    """Attributes:
    path: the folder or file written.
    files: sizes in bytes by name.
    sha256: of the weights, or of the file.
    run: the run that it was made of.
    form: what is in it: "trained", "frozen" or "timm" (see ``ModelCard``), for an ONNX or pt2 file "frozen".
    unlike_timm: why timm alone cannot build what is in a folder; None where it can, or where it is no folder.
    proofs: how near its answers are to the trained model's; [] for a folder that holds the trained model itself.
    fold: what became of the frozen activations' gains; None where nothing was folded.
    accuracy: what fewer bits cost; None where there are as many as before.
    baseline: what it was timed beside; None where nothing was timed.
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
        told = asdict(self)
        return {**told, "path": str(self.path), "run": str(self.run) if self.run is not None else None}
