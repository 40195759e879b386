"""Type stubs of TensorRT's bindings, written from the signatures that pybind11 leaves in their docstrings.

A program of its own, run where the bindings can be imported: ``python tensorrt_stubs.py MODULE > MODULE.pyi``. What can
be read exactly is written exactly, and nothing becomes Any: a type that is not understood ends the program. What the
signatures leave out is filled in to the strict side:

- An interface comes as a pointer, and a null pointer as None, so whatever returns one may return None.
- Where shapes (Dims) are taken a sequence of integers will do, where integers are taken anything that is one.
- An enum's members are known by name: neither by number, which differs between generations, nor by a name in a string.
- Without a constructor a class cannot be made. An interface that can be is meant to be subclassed, so its methods are
  abstract, and what they take is given to us. A property that only can be set is of no type, and so is what is of a C++
  class that the module does not offer.
- ``with`` is left out, which is deprecated.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import inspect
import keyword
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import cast

HEADER = """\
import builtins
import collections.abc
import typing
from abc import abstractmethod
from typing import ClassVar, NoReturn, SupportsFloat, SupportsIndex

from typing_extensions import Buffer, CapsuleType
"""
# What the package defines in Python, without annotations; in it ``bool`` is a type of TensorRT.
IN_PYTHON = {
    "volume": "def volume(iterable: collections.abc.Iterable[builtins.int]) -> builtins.int: ...",
    "nptype": "def nptype(trt_type: DataType) -> builtins.type[builtins.object]: ...",
    "DataType.itemsize": "builtins.float | None",
}
C_NAMES = {"IBuilder": "Builder", "IParserError": "ParserError"}
POINTERS_BY_OTHER_NAMES = {"Builder", "EngineInspector", "ParserError", "Refitter", "Runtime", "OnnxParser"}
PLAIN = {"int", "bool", "str", "float", "bytes", "object", "slice", "memoryview"}
BUILTIN_GENERIC, ABSTRACT_GENERIC = {"list", "tuple", "dict"}, {"Sequence", "Iterable"}
SHAPES = {"list": "builtins.list[builtins.int]", "tuple": "builtins.tuple[builtins.int, ...]"}
BARE = {
    "list": "builtins.list[builtins.object]",
    "tuple": "builtins.tuple[builtins.object, ...]",
    "Iterable": "collections.abc.Iterable[builtins.object]",
    "Callable": "builtins.object",
    "handle": "builtins.object",
    "accessor": "builtins.object",
    "buffer": "Buffer",
    "Buffer": "Buffer",
    "ndarray": "Buffer",
    "capsule": "CapsuleType",
    "CapsuleType": "CapsuleType",
    "unknown": "NoReturn",
}
NUMBERS = {"int": "SupportsIndex", "float": "SupportsFloat | SupportsIndex"}  # as they are taken


class Stub:
    """The stub of one module; ``text`` is all of it."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._classes = {c: name for name, c in _classes_in(module, "")}
        self._names = set(self._classes.values())

    def text(self) -> str:
        lines = [f"# {self._module.__name__} {self._module.__version__}", "__version__: builtins.str"]
        for name, value in vars(self._module).items():
            if not name.startswith(("_", "common_")) and not inspect.ismodule(value) and name not in ("attr", "value"):
                lines += self._member(name, value, name)
        return HEADER + "\n" + "\n".join(lines) + "\n"

    def _member(self, name: str, value: object, path: str) -> Iterator[str]:
        if path in IN_PYTHON and not isinstance(value, property):
            yield IN_PYTHON[path]
        elif isinstance(value, type):
            known_as = self._classes[value]
            yield from self._class(name, value) if known_as == path else [f"{name} = {known_as}"]
        elif isinstance(value, property):
            yield from self._property(name, value, path)
        elif type(value) in self._classes:
            kind = self._classes[type(value)]
            yield f"{name}: ClassVar[{kind}]" if "." in path else f"{name}: {kind}"
        elif callable(value) or isinstance(value, staticmethod):
            yield from self._function(name, value, is_method="." in path and not isinstance(value, staticmethod))
        else:
            raise TypeError(f"{path} = {value!r} is nothing that this program knows")

    def _class(self, name: str, cls: type) -> Iterator[str]:
        bases = [self._classes[base] for base in cls.__bases__ if base in self._classes]
        yield f"class {name}{'(' + ', '.join(bases) + ')' if bases else ''}:"
        members = getattr(cls, "__members__", {})
        lines = list(self._special(cls, members, bool(bases)))
        to_subclass = re.match("I[A-Z]", name) and "def __init__(self) -> None: ..." in lines
        for member, value in vars(cls).items():
            if member.startswith("_") or (members and member in ("name", "value")):
                continue
            if to_subclass and not isinstance(value, property | type) and callable(value):
                lines += ["@abstractmethod", *self._function(member, value, taken=False)]
            else:
                lines += self._member(member, value, f"{self._classes[cls]}.{member}")
        yield from (f"    {line}" for line in lines or ["..."])

    def _special(self, cls: type, members: Mapping[str, object], has_base: bool) -> Iterator[str]:
        """What has underscores, and of an enum its name and number."""
        own = vars(cls)
        if _signatures("__init__", own.get("__init__")) and not members:
            yield from self._function("__init__", own["__init__"])
        elif not has_base:
            yield "def __init__(self, made_by_tensorrt: NoReturn, /) -> None: ..."
        if members:
            for part in ("name", "value"):
                kind = type(getattr(next(iter(members.values())), part)).__name__
                yield f"{part}: builtins.{kind if kind in PLAIN else 'object'}"
        for name in ("__int__", "__index__", "__len__", "__getitem__", "__setitem__"):
            if _signatures(name, own.get(name)):
                yield from self._function(name, own[name])
        make = cast("Callable[[type], object]", cls.__new__)
        if ctypes.pythonapi.PyObject_CheckBuffer(ctypes.py_object(make(cls))):
            yield "def __buffer__(self, flags: builtins.int, /) -> builtins.memoryview: ..."
        if {"__len__", "__getitem__"} <= own.keys() and not hasattr(cls, "__iter__"):  # Python iterates by number
            item = self._result(_signatures("__getitem__", own["__getitem__"])[0])
            yield f"def __iter__(self) -> collections.abc.Iterator[{item}]: ..."

    def _property(self, name: str, value: property, path: str) -> Iterator[str]:
        setter = _signatures("", value.fset)
        yield "@builtins.property"
        if path in IN_PYTHON:
            result = IN_PYTHON[path]
        elif value.fget is None or not _signatures("", value.fget):
            result = "NoReturn"
        else:
            result = self._result(_signatures("", value.fget)[0])
        yield f"def {name}(self) -> {result}: ..."
        if setter:
            _, taken = _parameters(setter[0])
            yield f"@{name}.setter"
            yield f"def {name}(self, value: {self._type(taken.partition(': ')[2], taken=True)}, /) -> None: ..."

    def _function(self, name: str, value: object, is_method: bool = True, taken: bool = True) -> Iterator[str]:
        signatures = _signatures(name, value)
        if not signatures:
            raise TypeError(f"{name} has no signature: {value!r}")
        for signature in signatures:
            if len(signatures) > 1:
                yield "@typing.overload"
            if isinstance(value, staticmethod):
                yield "@builtins.staticmethod"
            yield f"def {name}({self._parameters(signature, is_method, taken)}) -> {self._result(signature)}: ..."

    def _parameters(self, signature: str, is_method: bool, taken: bool) -> str:
        parts, optional, by_name = ["self"] if is_method else [], False, False
        named_from = len(parts)
        for text in _parameters(signature)[is_method:]:
            if text in ("/", "*"):
                continue
            name, _, rest = text.partition(": ")
            kind, _, default = rest.partition(" = ")
            if optional and not default and not by_name:
                parts.append("*")  # it can be given by name only, for what stands before may be left out
                by_name = True
            optional = optional or bool(default)
            unnamed = bool(re.fullmatch(r"arg\d+", name)) or keyword.iskeyword(name)
            kind = self._type(kind, taken) + (" | None" if default == "None" else "")
            parts.append(f"{name}{'_' * keyword.iskeyword(name)}: {kind}{' = ...' * bool(default)}")
            if unnamed:
                named_from = len(parts)
        if named_from > is_method:
            parts.insert(named_from, "/")
        return ", ".join(parts)

    def _result(self, signature: str) -> str:
        text = self._type(signature.rpartition(" -> ")[2], taken=False)
        is_pointer = text in self._names and (re.match("I[A-Z]", text) or text in POINTERS_BY_OTHER_NAMES)
        return f"{text} | None" if is_pointer and "." not in text else text

    def _type(self, text: str, taken: bool) -> str:
        text = re.sub(r"detail::accessor<.*>", "accessor", text)
        text = re.sub(r"\w+::(?:v_1_0::)?(\w+)", self._known, text)
        return self._of(ast.parse(text, mode="eval").body, taken)

    def _known(self, found: re.Match[str]) -> str:
        name = C_NAMES.get(found[1], found[1])
        return name if name in self._names else "unknown"

    def _of(self, node: ast.expr, taken: bool) -> str:
        text = ast.unparse(node)
        name = text.removeprefix(f"{self._module.__name__}.")
        name = name.removeprefix(f"{self._module.__name__.removesuffix('_bindings')}.")
        last = name.rpartition(".")[2]
        if name in self._names:
            return f"{name} | collections.abc.Sequence[SupportsIndex]" if name == "Dims" and taken else name
        if isinstance(node, ast.Constant) and node.value is None:
            return "None"
        number = last.removeprefix("Supports").lower() if last in ("SupportsInt", "SupportsFloat") else name
        if number in NUMBERS:
            return NUMBERS[number] if taken else f"builtins.{number}"
        if name in PLAIN:
            return f"builtins.{name}"
        if isinstance(node, ast.Subscript):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return f"{_generic(node.value, taken)}[{', '.join(self._of(part, taken) for part in inner)}]"
        if last in BARE:
            return SHAPES.get(last, BARE[last]) if taken else BARE[last]
        raise TypeError(f"the type {text!r} is not understood")


def _generic(node: ast.expr, taken: bool) -> str:
    name = ast.unparse(node).rpartition(".")[2]
    if name in ABSTRACT_GENERIC or (name.lower() == "list" and taken):
        return f"collections.abc.{name if name in ABSTRACT_GENERIC else 'Sequence'}"
    if name.lower() in BUILTIN_GENERIC:
        return f"builtins.{name.lower()}"
    raise TypeError(f"the type {name!r} is not understood")


def _classes_in(holder: object, prefix: str) -> Iterator[tuple[str, type]]:
    for name, value in vars(holder).items():
        if isinstance(value, type) and value.__qualname__ == prefix + name and not name.startswith("_"):
            yield prefix + name, value
            yield from _classes_in(value, f"{prefix}{name}.")


def _signatures(name: str, value: object) -> list[str]:
    """Every overload's ``(self: T, a: A = ...) -> R``."""
    value = value.__func__ if isinstance(value, staticmethod) else value
    text = inspect.getdoc(value) if value is not None else None
    found = re.findall(rf"^(?:\d+\. )?{re.escape(name)}(\(.*\) -> .+)$", text or "", re.MULTILINE)
    return [re.sub(r"= (<[^>]*>|'[^']*'|\[\])", "= ...", text) for text in found if "*args" not in text]


def _parameters(signature: str) -> list[str]:
    inside, depth, parts = signature.rpartition(" -> ")[0][1:-1], 0, [""]
    for letter in inside:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


if __name__ == "__main__":
    print(Stub(importlib.import_module(sys.argv[1])).text(), end="")
