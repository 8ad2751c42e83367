"""The shape of the house: everything imports, documented examples hold, files and functions stay small."""

from __future__ import annotations

import ast
import doctest
import importlib
import statistics
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted((SOURCE / "fas").rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_module_imports_and_its_examples_hold(path: Path) -> None:
    try:
        module = importlib.import_module(module_name(path))
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        pytest.skip("the package triton is not here")
    assert doctest.testmod(module).failed == 0


def test_files_are_small() -> None:
    lengths = {module_name(path): lines for path in FILES if (lines := lines_of(path))}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}
    assert statistics.median(lengths.values()) < 120


def test_functions_are_small() -> None:
    long = {
        f"{module_name(path)}.{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 80
    }
    assert long == {}
