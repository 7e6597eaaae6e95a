"""Rules of names and sizes: no identifier is a pronoun, participle or adverb; files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "featurecache"
BANNED = {
    "again", "anew", "asked", "at", "each", "found", "given", "held", "insisted", "kept", "later",
    "looked", "most", "of", "one", "own", "place", "places", "said", "shown", "told", "whole",
}  # fmt: skip
MAX_LINES = 400
# Fields of files and of JSON that were shown to users, and so stay: class and field.
PROMISED = {
    "PolicyKey.own", "Candidate.kept", "Check.found", "Report.shown", "Ensemble.of", "Report.of",
    "Layer.place", "Layer.shown",
}  # fmt: skip


def identifiers(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every name that a module binds: variables, parameters, functions, classes,
    attributes, and fields, as "Class.field"."""
    tree = ast.parse(source)
    fields = {
        id(statement.target): node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = f"{fields[id(node)]}.{node.id}" if id(node) in fields else node.id
            yield node.lineno, name
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def is_banned(name: str) -> bool:
    bare = name.rpartition(".")[2].lstrip("_")
    return bare.rstrip("_").lower() in BANNED or bare.startswith(("MOST_", "LARGEST", "DEEPEST"))


def banned(source: str) -> list[str]:
    return [f"{line}: {name}" for line, name in identifiers(source) if is_banned(name)]


def test_no_name_is_a_pronoun_participle_or_adverb() -> None:
    bad = {
        f"{path.relative_to(PACKAGE)}:{line}": name
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, name in identifiers(path.read_text(encoding="utf-8"))
        if is_banned(name) and name not in PROMISED
    }
    assert bad == {}


@pytest.mark.parametrize(
    "source",
    ["found = 1", "def f(at): ...", "def told(): ...", "for one in x: ...", "[of for of in x]",
     "MOST_ROWS = 3", "class Later: ...", "try: ...\nexcept E as said: ...", "(own := 1)",
     "self.shown = 1", "class A:\n    kept: int"],
)  # fmt: skip
def test_a_planted_name_is_caught(source: str) -> None:
    assert banned(source)


def test_no_file_is_longer_than_400_lines() -> None:
    long = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_LINES
    }
    assert long == {}
