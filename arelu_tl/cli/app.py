"""The Typer application, and the one place that turns an error into a line and an exit code."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from arelu_tl.cli.help import Command, Group
from arelu_tl.errors import AreluTlError
from arelu_tl.records.home import argument_at_home
from arelu_tl.version import __version__

# In the order of --help; a command is the function of the same name in the module of that name.
COMMANDS = (
    "demo", "check", "finetune", "sweep", "compare", "inspect", "evaluate", "predict", "export",
    "explain", "reproduce",
)  # fmt: skip
# The verbs of the commands that are packages.
VERBS = {"explain": ("gradients", "features", "activations")}


def _summary(module: str) -> str:
    """Return the first paragraph of the docstring of a command, or of its package.

    The page of --help that lists the commands needs no more of them. Reading the source saves
    importing what their options are made of.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(module)
    source = Path(found.origin).read_text(encoding="utf-8")
    name = module.rpartition(".")[2]
    # From the command's function on, or where there is none (a package), from the beginning. A
    # syntax tree of every command would take longer than all else on the way to the page.
    begin = source.index('"""', source.find(f"\ndef {name}(") + 1) + 3
    docstring = source[begin : source.index('"""', begin)]
    return " ".join(docstring.partition("\n\n")[0].split())


def _print_version(asked: bool) -> None:
    if asked:
        print(f"arelu-tl {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Does AReLU make fine-tuning on your pictures converge faster, and is it worth keeping?"""


def _application(words: Sequence[str]) -> typer.Typer:
    """Build the application with every command listed and only the requested one runnable.

    Args:
        words: the words of the command line that are not options; the first names the command.
    """
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
    _add_commands(app, "arelu_tl.cli", COMMANDS, words)
    return app


def _add_commands(
    app: typer.Typer, package: str, names: Sequence[str], words: Sequence[str]
) -> None:
    """Add the commands of ``package``: all listed, only the one that ``words`` ask for runnable."""
    asked = words[0] if words else None
    # Reading the summaries takes a sixtieth of a second, which a command that runs need not wait.
    listed = asked not in names or names is not COMMANDS
    for name in names:
        module = f"{package}.{name}"
        if name != asked:
            summary = _summary(module) if listed else ""
            app.command(name, cls=Command, help=summary)(_not_asked)
        elif name in VERBS:
            verbs = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None)
            _add_commands(verbs, module, VERBS[name], words[1:])
            app.add_typer(verbs, name=name, help=_summary(module))
        else:
            app.command(name, cls=Command)(getattr(importlib.import_module(module), name))


def _not_asked() -> None:
    raise AssertionError("a command other than the words of the command line name was run")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    arguments = [
        argument_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)
    ]
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        # A name that is not valid text, or that the terminal cannot encode, is shown escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # An option before any command shows the list of commands, or the version.
        on_top = arguments[:1] and arguments[0].startswith("-")
        words = [] if on_top else [word for word in arguments if not word.startswith("-")]
        code = _application(words)(args=arguments, standalone_mode=False)
    except BrokenPipeError:
        code = 0
    except Exception as error:  # noqa: BLE001  the top level turns every error into a line
        code = _tell(error, debug)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        code = _say("interrupted before there was anything to save", 130)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe, which is no error. Without this the
        # interpreter would report it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code if isinstance(code, int) else 0)


def _tell(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, typer.TyperException):
        message = str(getattr(error, "format_message", lambda: error)())
        return _say(
            f"{_one_line(message)} (see --help)" if message else "",
            int(getattr(error, "exit_code", 2)),
        )
    if isinstance(error, AreluTlError):
        from arelu_tl.render.text import as_options

        return _say(as_options(_one_line(_unwrap(str(error)))), error.exit_code)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _say(
            f"{_one_line(str(error.filename))[:80]}...: the name is longer than a file's can be", 2
        )
    message = (
        f"unexpected {type(error).__name__}: {_one_line(str(error))} "
        "(a defect of ours: run again with --debug)"
    )
    return _say(message, 1)


def _say(line: str, code: int) -> int:
    """Print an error and return the exit code.

    Of several processes that train together, only the first to fail prints, and all return its
    code.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":  # import torch for nothing else
        from arelu_tl.training.distributed import is_one_of_many, speaks_first

        if is_one_of_many():
            first, code = speaks_first(code)
            if not first:
                return code
    if line:
        print(f"arelu-tl: {line}", file=sys.stderr)
    return code


def _unwrap(message: str) -> str:
    """Reduce an error of a loader's worker process, which carries a traceback, to its last line."""
    if "Original Traceback" not in message:
        return message
    return re.sub(r"^[\w.]+: ", "", message.strip().splitlines()[-1])


def _one_line(message: str) -> str:
    """Join the message into one line and escape the terminal's control characters."""
    from arelu_tl.render.text import visible

    return " ".join(map(visible, message.split()))
