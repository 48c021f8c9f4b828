"""Convert every timm architecture and write the table behind `arelu-tl inspect --list-supported`.

    python scripts/survey_timm.py            # all; half an hour on one core
    python scripts/survey_timm.py 'resnet*'  # some, printed, not written

An architecture that runs a ReLU must come out with none left and parameters of its own at each site; the exit code is 1 if any
does not. No weights are needed and no values computed: everything happens on the meta device.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase

import timm
from rich.console import Console
from rich.progress import track

from arelu_tl.explain.sites.survey import survey
from arelu_tl.explain.sites.survey_table import SURVEY, write_survey


def main(patterns: list[str]) -> int:
    names = [
        n for n in timm.list_models() if not patterns or any(fnmatchcase(n, p) for p in patterns)
    ]
    rows = [survey(name) for name in track(names, "surgery", console=Console(stderr=True))]
    refused = [row for row in rows if row.refusal]
    for row in refused:
        print(f"{row.name}: {row.refusal}", file=sys.stderr)
    found = [row for row in rows if row.sites or row.refusal]
    if patterns:
        for row in found:
            print(row)
    else:
        write_survey(found, timm.__version__)
        print(
            f"{SURVEY}: {len(found)} of {len(names)} architectures run a ReLU; {len(refused)} refused",
            file=sys.stderr,
        )
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
