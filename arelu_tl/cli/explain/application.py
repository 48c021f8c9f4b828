"""The verbs of ``explain``; only the one that is asked for is imported."""

from __future__ import annotations

import importlib

import typer

SUMMARIES = {
    "gradients": "Norm and vanishing share of the gradients by depth, at the start and along training, for both arms.",
    "features": "Maps before and after the activation, attention, and what the answer rests on, for one picture and both arms.",
    "activations": "Every site's learned curve beside its initial one; without a RUN, the shapes of the whole catalogue.",
}


def explain(asked: str | None) -> typer.Typer:
    """The application of ``arelu-tl explain``; only the verb that is ``asked`` for can run."""
    app = typer.Typer(no_args_is_help=True)
    for name, summary in SUMMARIES.items():
        if name == asked:
            app.command(name)(getattr(importlib.import_module(f"arelu_tl.cli.explain.{name}"), name))
        else:
            app.command(name, help=summary)(_not_asked)
    return app


def _not_asked() -> None:
    raise AssertionError("a verb other than the second word of the command line was run")
