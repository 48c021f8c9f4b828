"""Every page of --help at the widths of terminals: no name of an option is cut, and all that is said of it is there."""

import pytest
from commands import run_command
from typer.main import get_command

from arelu_tl.cli.app import COMMANDS, VERBS, _application

PAGES = [(name, verb) for name in COMMANDS for verb in VERBS.get(name, [""])]


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
@pytest.mark.parametrize("width", [60, 80])
def test_a_page_of_help_is_whole_and_fits(
    words: tuple[str, str], width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked = [word for word in words if word]
    done = run_command(*asked, "--help", cwd=tmp_path_factory.getbasetemp(), COLUMNS=str(width))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width, max(lines, key=len)
    page = " ".join(done.stdout.split())
    command = get_command(_application(asked))
    for word in asked:
        command = command.commands[word]  # type: ignore[attr-defined]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    assert {"--wide", "--json", "--quiet"} <= {
        name for option in options for name in option.opts
    } or words == ("demo", "")
    for option in options:
        assert all(
            name in done.stdout.replace(",", " ").split()
            for name in (*option.opts, *option.secondary_opts)
        )
        assert " ".join(option.help.split()) in page  # type: ignore[attr-defined]
