"""Loader workers hand their batches over whatever TMPDIR is."""

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

from arelu_tl.data.loader import shorten_socket_folder

_CODE = """
    import multiprocessing.util, sys, tempfile
    from pathlib import Path
    from arelu_tl.data.folder import scan_folder
    from arelu_tl.data.loader import eval_view, make_eval_batches

    folder = scan_folder(Path(sys.argv[1]))
    view = eval_view({"input_size": (3, 32, 32), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear"})
    batches = make_eval_batches(folder.root, folder.splits["val"], view, batch_size=4, workers=1)
    print(sum(len(labels) for _, labels in batches.epoch()), tempfile.gettempdir(), multiprocessing.util.get_temp_dir())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such sockets")
def test_batches_arrive_however_long_the_path_of_temporary_files_is(make_folder: Any) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        long = Path(place) / ("long " * 20)
        long.mkdir()
        code = textwrap.dedent(_CODE)
        done = subprocess.run(
            [sys.executable, "-c", code, str(make_folder())],
            capture_output=True,
            text=True,
            env={**os.environ, "TMPDIR": str(long), "OMP_NUM_THREADS": "1"},
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        count, rest = done.stdout.split(" ", 1)
        assert int(count) == 12
        assert rest.startswith(str(long))  # all else stays where the user wants it
        used = Path(rest.strip().removeprefix(str(long)).strip())
        assert not used.exists()


def test_where_the_path_is_short_nothing_is_made_for_workers_to_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        shorten_socket_folder()
        assert list(Path(place).iterdir()) == []
