"""What docs/gpu.md says that fails does fail with these words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LEAST = 10  # letters of a piece of a message that must be found


def test_the_messages_of_the_table_are_those_of_the_source() -> None:
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page.split("## What fails")[1], re.MULTILINE)
    assert len(messages) > 20
    templates = [
        text
        for folder in ("runtime/declip_runtime", "declip_sdk")
        for path in (ROOT / folder).rglob("*.py")
        for text in _texts(ast.parse(path.read_text(encoding="utf-8")))
    ]
    for message in messages:
        pieces = [piece.strip() for piece in re.split(r"\.\.\.|[():]|\S*\d\S*|CUDAExecutionProvider", message)]
        telling = [piece for piece in pieces if len(piece) >= _LEAST]
        assert telling, message
        for piece in telling:
            assert any(piece in text for text in templates), f"nothing says {piece!r} of {message!r}"


def _texts(tree: ast.AST) -> list[str]:
    """Every text of a module, what is formatted into it left out."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values))  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found
