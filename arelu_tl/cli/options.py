"""Command-line options made from the configuration's fields, the only source of their defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, overload

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from arelu_tl.errors import ConfigError
from arelu_tl.records.config import FinetuneConfig, check_config, read_yaml

Json = Annotated[
    bool, typer.Option("--json", help="Print the report as JSON.", rich_help_panel="Output")
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Say nothing but the report and errors.", rich_help_panel="Output"
    ),
]
Wide = Annotated[
    bool,
    typer.Option(
        "--wide",
        help="Tables with all their columns, however wide the terminal.",
        rich_help_panel="Output",
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")
]


def with_config_options(
    *, leave_out: Collection[str] = (), model: type[BaseModel] = FinetuneConfig
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command ``f(settings, ...)`` so that each field becomes an option.

    The generated options follow the command's other parameters, which stay as they are.
    ``settings`` is a dict of the values that were given, and of no others, so that a YAML file can
    supply the rest.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p
            for name, p in inspect.signature(command, eval_str=True).parameters.items()
            if name != "settings"
        ]
        fields = {
            name: field for name, field in model.model_fields.items() if name not in leave_out
        }

        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in fields}
            command(
                settings={k: v for k, v in given.items() if v is not None and v != []}, **values
            )

        parameters = own + [_parameter(name, field) for name, field in fields.items()]
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in keyword}
        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        return run

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind = _plain_type(field.annotation)
    flag = "--" + name.replace("_", "-")
    if kind is bool and not name.startswith("no_"):
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    names = [flag, *([str(extra["short"])] if extra.get("short") else [])]
    # The default is written into the help. Typer's own default stays None, which means "not
    # given", so that the YAML file's value counts.
    option = typer.Option(
        *names,
        help=f"{field.description}{_default_note(name, field.default)}",
        rich_help_panel=str(extra.get("panel", "Options")),
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _default_note(name: str, default: Any) -> str:
    if default is None or default is False or default == []:
        return ""
    if default is True:
        return f" (default: --{name.replace('_', '-')})"
    return f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def _plain_type(annotation: Any) -> Any:
    """The annotation without None and without pydantic's constraints."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_type(get_args(annotation)[0])
    if origin in (Union, UnionType):
        kinds = [a for a in get_args(annotation) if a is not NoneType]
        # A number or a word (``auto``): the configuration parses and validates it.
        return str if len(kinds) > 1 else _plain_type(kinds[0])
    if origin is Literal or origin in (list, tuple) or annotation in (str, int, float, bool, Path):
        return annotation
    raise TypeError(f"no option can be made of {annotation}")


Moved = Annotated[
    Path | None,
    typer.Option(
        "--data", help="DATA as an option; with --resume: where the study's pictures are now."
    ),
]


def one_folder(argument: Path | None, option: Path | None) -> Path | None:
    """Return the folder of pictures, given as an argument or as an option.

    Raises:
        ConfigError: it is given as both.

    Raises:
        ConfigError: in both ways.
    """
    if option is None:
        return argument
    if argument is not None:
        raise ConfigError(f"the folder of pictures is named twice: {argument} and {option}")
    return option


_Model = TypeVar("_Model", bound=BaseModel)


@overload
def merge_config(config_file: Path | None, settings: dict[str, Any]) -> FinetuneConfig: ...
@overload
def merge_config(
    config_file: Path | None, settings: dict[str, Any], model: type[_Model]
) -> _Model: ...
def merge_config(
    config_file: Path | None, settings: dict[str, Any], model: type[BaseModel] = FinetuneConfig
) -> BaseModel:
    """Merge the YAML file and the command line, which wins, and validate the result.

    Raises:
        ConfigError: see ``check_config`` and ``read_yaml``.
    """
    return check_config({**(read_yaml(config_file) if config_file else {}), **settings}, model)
