"""How long ``arelu-tl compare`` takes on many runs: 2 arms x 10 rates x 25 seeds, 200 evaluations of 300 pictures each.

    python benchmarks/compare_many_runs.py

The run folders are written here, as training leaves them but for weights and checkpoints; what is timed is the whole command,
from its start to its report.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from run_folders import draw_correct, write_run

RATES = [float(f"{lr:.3g}") for lr in np.geomspace(1e-5, 1e-2, 10)]
SEEDS = 25
EVALUATIONS = 200
PICTURES = 300


def main() -> None:
    stream = np.random.default_rng(0)
    difficulty = stream.normal(0, 1.5, PICTURES)
    with tempfile.TemporaryDirectory() as place:
        study = Path(place) / "study"
        for arm, head_start in (("relu", 1.0), ("arelu", 1.3)):
            for number, lr in enumerate(RATES):
                speed = head_start * 0.004 * 1.6**number
                curve = 0.1 + 0.85 * (1 - np.exp(-speed * np.arange(EVALUATIONS)))
                for seed in range(SEEDS):
                    correct = draw_correct(stream, curve, PICTURES, difficulty=difficulty)
                    write_run(study, arm, correct=correct, lr=lr, seed=seed, sites=50)
        size = sum(path.stat().st_size for path in study.rglob("*") if path.is_file())
        runs = sum(1 for _ in study.glob("*/run.yaml"))
        # What was just written is on its way to the disk; the command's own files would have to wait for it.
        os.sync()
        for options in (["--no-report"], []):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "arelu_tl", "compare", str(study), "--quiet", *options],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - started
            print(
                f"{runs} runs, {size / 1e6:.0f} MB, {' '.join(options) or 'with figures and page'}: {seconds:.1f} s"
            )
        page = study / "report.html"
        print(f"report.html: {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
