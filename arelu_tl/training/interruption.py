"""SIGINT and SIGTERM as a wish that the loop grants at its next step boundary; a second one is not asked again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """``signal_number`` is None until a signal has come."""

    def __init__(self) -> None:
        self.signal_number: int | None = None


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM; on the second the process goes at once, as the system would have it.

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
