"""The studies: each writes pictures and their numbers into a folder."""

from __future__ import annotations

import click


@click.group()
def study() -> None:
    """Look at vectors, networks and policies: pictures, with the numbers beside them."""
