"""Layer 6: the command line. One file a command; torch is imported inside commands only; one error handler."""

from arelu_tl.cli.app import main

__all__ = ["main"]
