"""HTML pages from the templates in study/templates. Only this module writes HTML.

A page is one file that makes no network requests. Every value is escaped (autoescape), since class
and file names are untrusted. Pictures are data URIs of bytes that were encoded here.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, **values: Any) -> str:
    """The HTML of a template in study/templates. A value that the template lacks is an error."""
    import jinja2
    from markupsafe import Markup

    def asset(name: str) -> Markup:
        return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # our own file

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"asset": asset, "script_hash": _script_hash}
    return environment.get_template(template).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a data URI, for the `src` of an image. `kind` is a media type: image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _script_hash(name: str) -> str:
    """The hash that a page's Content-Security-Policy gives for the only script it may run."""
    text = (TEMPLATES / name).read_bytes()
    return "sha256-" + base64.b64encode(hashlib.sha256(text).digest()).decode("ascii")
