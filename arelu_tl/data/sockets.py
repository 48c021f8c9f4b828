"""Where loader workers' sockets lie: they hand each batch over by one, whose path must be short."""

from __future__ import annotations

import multiprocessing.util
import os
import sys
import tempfile

from arelu_tl.errors import ConfigError

# A socket's path has room for 104 bytes on some systems, 108 on Linux; its own name and its end take 19 of them.
_MOST_BYTES = 84


def shorten_socket_folder() -> None:
    """Let this process and its workers make their sockets where the path is short enough, if TMPDIR's is too long for them.

    With a longer one a worker's first batch never arrives, and training would wait for ever.

    Raises:
        ConfigError: there is no such place.
    """
    # Where it is short, each worker makes a folder of its own.
    if sys.platform == "win32" or len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678") <= _MOST_BYTES:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        # Made at the first call, removed when this process ends, and inherited by its workers.
        folder = str(multiprocessing.util.get_temp_dir())
    except OSError:
        folder = ""
    finally:
        tempfile.tempdir = before
    if not folder or len(os.fsencode(folder)) > _MOST_BYTES:
        raise ConfigError("the path for temporary files is too long for loader workers: set a short TMPDIR, or pass -j 0")
