"""What errors suggest can be pasted: it parses, and names the data and the cache it is about."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from featurecache.cli import cli
from featurecache.errors import BadInput


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "my photos" / name / f"{name}.png")
    return tmp_path / "my photos"


def message_of(words: list[str]) -> str:
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, BadInput), result.output
    return str(result.exception)


def parsed(message: str) -> tuple[str, dict[str, Any]]:
    """The command in a message, and its options as click reads them."""
    found = re.search(r"(?:with: |`)featurecache (.*?)(?:`|$)", message)
    assert found is not None, message
    name, *words = shlex.split(found[1])
    context = cli.commands[name].make_context(name, words)
    return name, context.params


@pytest.mark.parametrize(
    ("command", "suggested"),
    [
        ("ls", "featurize"),
        ("retry", "featurize"),
        ("verify", "featurize"),
        ("baselines", "ls"),
        ("study drift", "ls"),
        ("train-head", "featurize"),
        ("study drift --view none --backbone efficientnet_lite0", "featurize"),
        ("study drift --view none --backbone smallnet_28", "featurize"),
    ],
)
def test_a_suggested_command_names_the_data_and_the_cache(
    photos: Path, tmp_path: Path, command: str, suggested: str
) -> None:
    cache = str(tmp_path / "a cache")
    words = [*command.split(), "--cache", cache]
    words += [] if command == "ls" else ["--data", str(photos)]
    name, options = parsed(message_of(words))
    assert (name, options["cache"]) == (suggested, cache)
    if name == "featurize" and command != "ls":
        assert options["data"] == str(photos) and options["backbone"]
        assert options["weights"] == ("FILE" if "smallnet" in command else None)
