"""Signatures stay short, and results are frozen dataclasses that are built by keyword."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "featurecache"
MAX_PARAMETERS = 8  # named ones, beside a typed group
RESULT_ROOMS = {"stages", "runs", "lookup", "filling", "study"}


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """(file:line, node) of every function and class of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def test_no_function_has_more_than_eight_named_parameters() -> None:
    """More of them that travel together are a typed group (PEP 692) or a dataclass."""
    long = {}
    for place, node in nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            names = [p.arg for p in parameters if p.arg not in ("self", "cls")]
            if len(names) > MAX_PARAMETERS:
                long[place] = len(names)
    assert long == {}


@pytest.mark.slow
def test_no_keyword_group_is_untyped_in_a_stage() -> None:
    """`**keywords` of a public function name their typed group, so that editors know them."""
    untyped = [
        place
        for place, node in nodes()
        if place.startswith("stages/")
        and isinstance(node, ast.FunctionDef)
        and node.args.kwarg is not None
        and "Unpack" not in ast.unparse(node.args.kwarg.annotation or ast.Constant(None))
    ]
    assert untyped == []


def test_results_are_frozen_dataclasses_built_by_keyword() -> None:
    """So a field can be added without breaking a caller, and a result stays what it was."""
    other = {
        place: decorator
        for place, node in nodes()
        if place.split("/")[0] in RESULT_ROOMS
        and isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        for decorator in map(ast.unparse, node.decorator_list)
        if decorator.startswith("dataclass")
        and not ("frozen=True" in decorator and "kw_only=True" in decorator)
    }
    assert other == {}
