"""Pages: the only room that writes HTML, from the templates beside it.

A page is one file that asks the network for nothing. Every value is escaped (autoescape), class and
file names come from strangers; pictures are data URIs of bytes that were encoded here.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, **values: Any) -> str:
    """The HTML of a template in study/templates; a value that is missing there is an error."""
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
    """`content` of a media type such as image/png, as the `src` of an image."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _script_hash(name: str) -> str:
    """What a page's Content-Security-Policy says of the one script that it may run."""
    text = (TEMPLATES / name).read_bytes()
    return "sha256-" + base64.b64encode(hashlib.sha256(text).digest()).decode("ascii")
