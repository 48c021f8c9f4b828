"""Handle SIGINT and SIGTERM: the loop stops at its next step; a second signal ends the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """A request to stop; ``signal_number`` is None until a signal was received."""

    def __init__(self) -> None:
        self.signal_number: int | None = None


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Record the first SIGINT or SIGTERM; the second ends the process at once, as by default.

    Outside the main thread signals cannot be caught, and nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        request.signal_number = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
