"""The page's template: foreign text is made visible and escaped, only our own script may run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from arelu_tl.render.text import visible


def render_page(**content: Any) -> str:
    """Render the HTML of report.html."""
    environment = _environment()
    sources = {
        name: environment.loader.get_source(  # type: ignore[union-attr]
            environment, f"report.{name}"
        )[0]
        for name in ("css", "js")
    }
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in sources.items()
    }
    # Even if escaping failed somewhere, nothing could be loaded, sent or run.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes['css']}'; "
        f"script-src 'sha256-{hashes['js']}'; "
        "base-uri 'none'; form-action 'none'"
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        policy=Markup(policy), style=Markup(sources["css"]), script=Markup(sources["js"]), **content
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("arelu_tl.render"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lines"] = _lines
    return environment


def _visible(value: Any) -> Any:
    """Escape invisible characters of foreign text; our own markup passes unchanged."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """Escape text of several lines for ``<pre>``."""
    return Markup("\n").join(escape(visible(line)) for line in text.splitlines())
