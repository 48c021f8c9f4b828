"""The Typer application and the one place where errors become a line and an exit code."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from arelu_tl.cli.help import Command, Group
from arelu_tl.errors import AreluTlError
from arelu_tl.records.home import argument_at_home
from arelu_tl.version import __version__

# In the order of --help. A command's module, with the configuration that its options are made of, is imported when the command
# is asked for: a page of help that lists nine commands needs none of them.
SUMMARIES = {
    "demo": "Fine-tune the embedded backbone on real MNIST digits, AReLU beside ReLU: no network, minutes on two cores.",
    "check": "Check a folder of pictures as finetune does, and say all that it would refuse or warn of.",
    "finetune": "Fine-tune a backbone with AReLU in place of every ReLU, beside the unmodified one, on a folder of pictures.",
    "sweep": "Train a grid of arms, learning rates and seeds on one folder of pictures; go on where it was left, and compare.",
    "compare": "Compare runs that differ in nothing but the arm: statistics, verdicts, figures, and a page to hand on.",
    "inspect": "List every ReLU site of a backbone, what surgery would do to it, and the drift it would cause.",
    "evaluate": "Evaluate a trained model: accuracy, F1, calibration, each class's precision and recall, confusion matrix.",
    "predict": "Label pictures with a trained model.",
    "export": "Export a trained model with class names and preprocessing inside, proved to answer as the trained one does.",
    "explain": "What the activation does inside a net, as pictures: gradients by depth, feature maps, learned curves.",
    "reproduce": "The paper's MNIST-Conv comparison over all its activations: accuracy after the first epoch, table and curves.",
}
# Of a command whose name is a package: its verbs.
VERBS = {
    "explain": {
        "gradients": "Norm and vanishing share of the gradients by depth, at the start and along training, for both arms.",
        "features": "Maps before and after the activation, attention, and what the answer rests on, for a picture in both arms.",
        "activations": "Every site's learned curve beside its initial one; without a RUN, the shapes of the whole catalogue.",
    },
}


def _print_version(asked: bool) -> None:
    if asked:
        print(f"arelu-tl {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Does AReLU make fine-tuning on your pictures converge faster, and is it worth keeping?"""


def _application(words: Sequence[str]) -> typer.Typer:
    """The commands by name; only the one that ``words``, those of the command line that are no options, ask for can run."""
    app = typer.Typer(
        name="arelu-tl",
        cls=Group,
        help=_top.__doc__,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_top)
    _add_commands(app, "arelu_tl.cli", SUMMARIES, words)
    return app


def _add_commands(app: typer.Typer, package: str, summaries: Mapping[str, str], words: Sequence[str]) -> None:
    """Add the commands of ``package``, of which the first of ``words`` asks for one, and the next for its verb."""
    for name, summary in summaries.items():
        if not words or name != words[0]:
            app.command(name, cls=Command, help=summary)(_not_asked)
        elif name in VERBS:
            verbs = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None)
            _add_commands(verbs, f"{package}.{name}", VERBS[name], words[1:])
            app.add_typer(verbs, name=name, help=summary)
        else:
            app.command(name, cls=Command)(getattr(importlib.import_module(f"{package}.{name}"), name))


def _not_asked() -> None:
    raise AssertionError("a command other than the words of the command line name was run")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    arguments = [argument_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        # A name that is no valid text (or that the terminal's encoding lacks) is shown escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        words = [word for word in arguments if not word.startswith("-")]
        code = _application(words)(args=arguments, standalone_mode=False)
    except BrokenPipeError:
        code = 0
    except Exception as error:  # noqa: BLE001  the top of the program: everything becomes a line and a code
        code = _tell(error, debug)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        code = _say("interrupted before there was anything to save", 130)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has left; nothing is wrong, and the interpreter shall not complain at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code if isinstance(code, int) else 0)


def _tell(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, typer.TyperException):
        message = str(getattr(error, "format_message", lambda: error)())
        return _say(f"{_one_line(message)} (see --help)" if message else "", int(getattr(error, "exit_code", 2)))
    if isinstance(error, AreluTlError):
        return _say(_one_line(_unwrap(str(error))), error.exit_code)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _say(f"{_one_line(str(error.filename))[:80]}...: the name is longer than a file's can be", 2)
    told = f"unexpected {type(error).__name__}: {_one_line(str(error))} (a defect of ours: run again with --debug)"
    return _say(told, 1)


def _say(line: str, code: int) -> int:
    """Print an error and return the exit code; of processes that train together the first to fail speaks for all."""
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torch is imported for nobody else
        from arelu_tl.training.distributed import is_one_of_many, speaks_first

        if is_one_of_many():
            first, code = speaks_first(code)
            if not first:
                return code
    if line:
        print(f"arelu-tl: {line}", file=sys.stderr)
    return code


def _unwrap(message: str) -> str:
    """An error of a loader's worker process arrives with that process's traceback; its last line is what was said."""
    if "Original Traceback" not in message:
        return message
    return re.sub(r"^[\w.]+: ", "", message.strip().splitlines()[-1])


def _one_line(message: str) -> str:
    """On one line, with what a terminal would act on written as an escape."""
    from arelu_tl.render.text import visible

    return " ".join(map(visible, message.split()))
