"""Every error that a user can meet, with the command line's exit code for it.

Each class also derives from the built-in that it refines, so that users of the library may catch
either. A message is one line: what is wrong, then what to do.
"""

from __future__ import annotations


class AreluTlError(Exception):
    """Base of all deliberate errors; ``exit_code`` is the command line's exit code."""

    exit_code = 1


class ConfigError(AreluTlError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class DataError(AreluTlError, ValueError):
    """The folder of pictures cannot be used as it is."""

    exit_code = 2


class BackboneError(AreluTlError, ValueError):
    """The model is unknown, or its weights are unavailable or do not fit."""

    exit_code = 2


class SurgeryError(AreluTlError, ValueError):
    """The plan for the sites cannot be applied; the model has not been changed."""

    exit_code = 2


class NoSitesError(SurgeryError):
    """The model runs no ReLU."""


class RunsFailedError(AreluTlError, RuntimeError):
    """Some runs of a sweep failed; ``exit_code`` is that of the most severe failure."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class GateError(AreluTlError, RuntimeError):
    """The result is one that the user asked to be reported by the exit code."""


class ComparisonError(AreluTlError, ValueError):
    """The runs differ in more than the arm, so a comparison would be misleading."""

    exit_code = 2


class ArtefactError(AreluTlError, ValueError):
    """A checkpoint, run folder or exported file is corrupt, incomplete or unsafe."""

    exit_code = 3


class NonFiniteError(AreluTlError, ArithmeticError):
    """The training produced a NaN or infinite number."""

    exit_code = 4


class StorageError(AreluTlError, OSError):
    """A folder or file cannot be written or is held by another process."""

    exit_code = 5


class PeerError(AreluTlError, RuntimeError):
    """Another process of a distributed training has ended, or does not answer."""


class Interrupted(AreluTlError):  # noqa: N818 (nothing went wrong)
    """A signal ended the training after a checkpoint had been saved.

    ``exit_code`` is 128 + the signal's number: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
