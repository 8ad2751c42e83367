"""The embedded default: a small GPT-2 and text that every CPython carries.

The text is the language reference in ``pydoc_data.topics`` and the docstrings of the standard library. A document is a
topic or a module; it belongs to the evaluation text if the hash of its name says so, in every Python version. The
evaluation text itself is frozen in the package, so that figures do not depend on the interpreter.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

SEPARATOR = "<|endoftext|>"
_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "lib2to3", "idlelib", "turtledemo", "pydoc_data"}


def model_path() -> Path:
    """Folder of the embedded model and its tokenizer."""
    return Path(str(files("fas") / "builtin" / "model"))


def vision_path() -> Path:
    """Folder of the embedded vision-language model (a LLaVA that has seen `fas.tasks.shapes`) and its processor."""
    return Path(str(files("fas") / "builtin" / "vision"))


def is_evaluation(name: str) -> bool:
    """Whether the document called ``name`` is held out: one in ten, by the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def evaluation_documents() -> list[str]:
    """The frozen evaluation text, one string a document: four of five that the embedded model never saw."""
    return [document for index, document in enumerate(_frozen()) if index % 5]


def held_out_documents() -> list[str]:
    """The fifth that is not evaluated on: it decides which of ANN and control is better.

    Training text cannot decide that here, because the embedded model was trained on all of it.
    """
    return _frozen()[::5]


def _frozen() -> list[str]:
    text = (files("fas") / "builtin" / "evaluation.txt").read_text(encoding="utf-8")
    return [document.strip() for document in text.split(SEPARATOR) if document.strip()]


def training_documents() -> list[str]:
    """All documents of this interpreter that are not held out, without any paragraph of the frozen text."""
    held_out = {line for document in _frozen() for line in _long_lines(document)}
    documents = []
    for name, text in documents_of_this_python():
        if not is_evaluation(name):
            kept = [p for p in text.split("\n\n") if not any(line in held_out for line in _long_lines(p))]
            documents.append("\n\n".join(kept))
    return [document for document in documents if len(document) > 200]


def documents_of_this_python() -> Iterator[tuple[str, str]]:
    """Pairs of document name and text: every topic of the language reference, then every module's docstrings."""
    from pydoc_data import topics

    for topic, text in sorted(topics.topics.items()):
        yield f"topic:{topic}", text.strip()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _SKIPPED_FOLDERS & set(relative.parts):
            module = ".".join(relative.with_suffix("").parts)
            text = _docstrings(path, module)
            if len(text) > 200:
                yield f"module:{module}", text


def _docstrings(path: Path, module: str) -> str:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # templates and deliberately broken files of the standard library
        return ""
    parts: list[str] = []

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                parts.append(f"{name}\n{docstring.strip()}")
        for child in ast.iter_child_nodes(node):
            visit(child, f"{name}.{child.name}" if hasattr(child, "name") else name)

    visit(tree, module)
    return "\n\n".join(parts)


def _long_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if len(line) > 40]
