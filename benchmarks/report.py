"""Every benchmark one after the other, and the performance tables of docs/explanation/cost.md from what they measured.

    make bench        (or: python benchmarks/report.py [--only operator step ...] [--quick])

Writes docs/performance.json and docs/performance.md, and the same tables into docs/explanation/cost.md
between its two marks; where there is a GPU it is measured instead, into docs/performance-gpu.*, and
that page is left alone. Each benchmark runs in a process of its own. Use a machine that does nothing
else: the ratios are taken in turns, so that a slower minute slows both sides, but they scatter.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import machine

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- make bench writes from here -->", "<!-- to here -->"


@dataclass(frozen=True)
class Section:
    """Attributes:
    module: of this folder, with a function ``rows``.
    told: the sentence over its table.
    full, quick: how often or how long, as ``rows`` takes it.
    """

    module: str
    told: str
    full: dict[str, Any]
    quick: dict[str, Any]


SECTIONS = {
    "operator": Section(
        "activation_cost",
        "**The activation alone** on a float32 map (32, 64, 56, 56), over ReLU in place; maps kept besides the output:",
        {"rounds": 25},
        {"rounds": 5},
    ),
    "step": Section(
        "training_step", "**A training step**, AReLU against ReLU:", {"rounds": 11}, {"rounds": 3}
    ),
    "exchange": Section(
        "ddp_exchange",
        "**Two processes, one net**: a step with DistributedDataParallel's exchange of gradients over one with ours:",
        {"rounds": 15},
        {"rounds": 3},
    ),
    "stacked": Section(
        "stacked_nets",
        "**Small nets by the stack**, as `reproduce` trains them: a step of torch's modules one by one over the stack's:",
        {"rounds": 15},
        {"rounds": 3},
    ),
    "finetune": Section(
        "finetune_throughput",
        "**Fine-tuning** on 500-pixel JPEGs, pictures a second from the second epoch on, against the pieces of timm's train.py "
        "with the same model, batch and threads, and its best number of workers:",
        {},
        {"quick": True},
    ),
    "data": Section("data_path", "**The data path alone**, the same JPEGs:", {}, {"quick": True}),
    "export": Section(
        "export_latency",
        "**The exported net** in onnxruntime, 224 x 224, AReLU against ReLU:",
        {"seconds": 15},
        {"seconds": 3},
    ),
    "startup": Section("startup", "**Start-up**, whole processes:", {"rounds": 5}, {"rounds": 3}),
    "growth": Section(
        "growth", "**Growth** with pictures, classes and sites:", {}, {"quick": True}
    ),
}


def measure(section: Section, *, quick: bool) -> dict[str, Any]:
    """{"rows": what the benchmark found, "text": the same as its own Markdown}."""
    code = (
        f"import json, {section.module} as m; rows = m.rows(**{section.quick if quick else section.full!r}); "
        "print('FOUND', json.dumps({'rows': rows, 'text': m.markdown(rows)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:]
    )
    return found


def described(about: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {about[name]}" for name in ("torch", "timm", "pillow", "onnxruntime")
    )
    where = about["gpu"] or f"{about['processor']}, {about['cores']} cores"
    return f"Measured on {about['date']}: {where}, {about['memory_gib']} GiB; {versions}. Medians, each pair taken in turns."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="keep the other sections' last figures",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few rounds, to see that everything runs; writes nothing",
    )
    options = parser.parse_args()
    about = {"date": datetime.date.today().isoformat(), **machine()}
    target = ROOT / "docs" / ("performance-gpu" if about["gpu"] else "performance")
    record = target.with_suffix(".json")
    kept = json.loads(record.read_text())["tables"] if record.exists() else {}
    tables = {}
    for name, section in SECTIONS.items():
        if name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            tables[name] = measure(section, quick=options.quick)
            print(f"{section.told}\n\n{tables[name]['text']}\n", flush=True)
        elif name in kept:
            tables[name] = kept[name]
    if options.quick:
        return
    text = "\n".join(
        [
            described(about),
            "",
            *(
                f"{SECTIONS[name].told}\n\n{found['text'].strip()}\n"
                for name, found in tables.items()
            ),
        ]
    )
    record.write_text(json.dumps({"machine": about, "tables": tables}, indent=1) + "\n")
    target.with_suffix(".md").write_text(f"# Performance\n\nWritten by `make bench`.\n\n{text}")
    if not about["gpu"]:
        page = ROOT / "docs" / "explanation" / "cost.md"
        before, rest = page.read_text().split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
