"""Type stubs of cuda-bindings, written from their docstrings by ``python cuda_stubs.py MODULE > MODULE.pyi``.

Cython leaves each function's parameters in the first line and, in the sections *Parameters* and *Returns*, what kind of
things they are. Every function returns a tuple of an error code and its results; each result is None after an error.
Nothing becomes Any: what is not described further is an ``object``. To the strict side of the truth:

- An address is an ``int`` or a buffer, never None; one that is returned is an ``int``.
- A handle (stream, event, graph) is one of its class, or an ``int``.
"""

from __future__ import annotations

import importlib
import inspect
import keyword
import re
import sys
from collections.abc import Iterator
from types import ModuleType

HEADER = """\
import builtins
from enum import IntEnum

from typing_extensions import Buffer
"""
NUMBERS = {"int", "unsigned int", "size_t", "unsigned long long", "long long", "unsigned char", "bool"}


class Stub:
    """The stub of one module; ``text`` is all of it."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def text(self) -> str:
        lines = [f"# {self._module.__name__} {importlib.import_module('cuda.bindings').__version__}"]
        for name, value in vars(self._module).items():
            if name.startswith("_") or inspect.ismodule(value):
                continue
            if isinstance(value, type):
                lines += self._class(name, value) if value.__module__ == self._module.__name__ else []
            elif type(value) is int:
                lines.append(f"{name}: builtins.int")
            elif type(value).__name__ == "cython_function_or_method":
                lines.append(self._function(name, inspect.getdoc(value) or ""))
        return HEADER + "\n" + "\n".join(lines) + "\n"

    def _class(self, name: str, cls: type) -> Iterator[str]:
        members = getattr(cls, "__members__", None)
        if isinstance(members, dict) and issubclass(cls, int):
            yield f"class {name}(IntEnum):"
            yield from (f"    {member} = {int(value)}" for member, value in members.items())
            return
        yield f"class {name}:"
        yield "    def __init__(self, address: builtins.int = ..., /) -> None: ..."
        yield "    def getPtr(self) -> builtins.int: ..."
        if hasattr(cls, "__int__"):
            yield "    def __int__(self) -> builtins.int: ..."
        described = dict(re.findall(r"^(\w+) : (.+)$", inspect.getdoc(cls) or "", re.MULTILINE))
        for member, value in vars(cls).items():
            if inspect.isgetsetdescriptor(value):
                kind = self._type(described.get(member, ""))
                yield f"    {member}{'_' * keyword.iskeyword(member)}: {kind}"

    def _function(self, name: str, doc: str) -> str:
        first, _, rest = doc.partition("\n")
        inside = re.fullmatch(rf"{name}\((.*)\)", first)
        if not inside:
            raise TypeError(f"{name} has no signature: {first!r}")
        if not re.search(r"^Returns$", rest, re.MULTILINE):
            rest = re.sub(r"^    ", "", rest, flags=re.MULTILINE)  # one of them is indented
        parameters = _section(rest, "Parameters")
        parts = [self._parameter(text, parameters) for text in _split(inside[1])]
        error = "CUresult" if hasattr(self._module, "CUresult") else "cudaError_t"
        kinds = [kind for kind in _section(rest, "Returns").values() if not kind.startswith(error)]
        values = [f"{'builtins.int' if kind == 'Any' else self._type(kind)} | None" for kind in kinds]
        described = ", ".join([error, *values])
        result = f"builtins.tuple[{described}]" if _section(rest, "Returns") else "builtins.object"
        return f"def {name}({', '.join(parts)}) -> {result}: ..."

    def _parameter(self, text: str, described: dict[str, str]) -> str:
        text, equals, _ = text.partition("=")
        declared, colon, annotation = text.partition(":")
        c_type, _, name = declared.strip().rpartition(" ")
        name = name.lstrip("*")
        if colon:
            kind = self._type(annotation.strip())
        elif "*" in declared:
            kind = "builtins.bytes"
        elif c_type:
            kind = self._type(c_type)
        else:
            kind = described.get(name, "")
            kind = "builtins.int | Buffer" if kind == "Any" else self._type(kind) + " | builtins.int" * ("_t`" in kind)
        return f"{name}: {kind}{' = ...' * bool(equals)}"

    def _type(self, text: str) -> str:
        """What is neither a number, bytes nor a class of the module is an object."""
        if text in NUMBERS:
            return "builtins.int"
        if text in ("bytes", "float"):
            return f"builtins.{text}"
        if text.lower() == "list[int]":
            return "builtins.list[builtins.int]"
        known = [name for name in re.findall(r"\w+", text) if isinstance(getattr(self._module, name, None), type)]
        plain = re.fullmatch(r"(?::py:obj:`~\.\w+`(?: or )?)+|\w+|Optional\[\w+\]", text)
        own = [name for name in known if getattr(self._module, name).__module__ == self._module.__name__]
        return " | ".join(own) if plain and own else "builtins.object"


def _section(doc: str, title: str) -> dict[str, str]:
    """The entries of one section: name to kind; where only a kind is given, that stands for both."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^[A-Z][\w ]+\n-+$|\Z)", doc, re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^(?! )(?:(\w+) : )?(.+)$", found[1], re.MULTILINE) if found else []
    return {name or kind: kind for name, kind in entries}


def _split(inside: str) -> list[str]:
    depth, parts = 0, [""]
    for letter in inside:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


if __name__ == "__main__":
    print(Stub(importlib.import_module(sys.argv[1])).text(), end="")
