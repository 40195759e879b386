"""Descriptions that check the type of every field, whether code made them or JSON that anybody may have edited."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import EngineVersionError, ManifestError


class Typed:
    """Base of the descriptions: a field of a type that its hint does not allow is refused with ManifestError."""

    def __post_init__(self) -> None:
        cls: Any = type(self)  # mypy takes a bare class for unhashable
        for name, hint in _hints(cls).items():
            object.__setattr__(self, name, typed(getattr(self, name), hint, f"{cls.__name__}.{name}"))


def not_valid(message: str) -> ManifestError:
    """The error for a manifest of which ``message`` is true."""
    return ManifestError(f"the engine's manifest is not valid: {message}. Export the engine again.")


def require(condition: bool, message: str) -> None:
    """Raise ManifestError with ``message`` unless ``condition``."""
    if not condition:
        raise not_valid(message)


def require_version(where: str, value: Any, newest: int) -> None:
    """Raise EngineVersionError for a version above ``newest``, ManifestError for what is no version."""
    if not _is_plain(value, int) or value < 1:
        raise _of_another_type(where, value, "a whole number from 1 on")
    if value > newest:
        raise EngineVersionError(
            f"this engine uses {where} {value}, this SDK reads up to {newest}. Run: pip install -U declip-sdk"
        )


_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def typed(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` in the form of the type hint: JSON's lists become tuples, its objects descriptions.

    Knows the kinds of hints that descriptions use. Raises ManifestError naming ``where`` for what the hint does not
    allow.
    """
    if hint in _WORDS:
        if not _is_plain(value, hint):
            raise _of_another_type(where, value, _WORDS[hint])
        return value
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return value
    if kind in (Union, UnionType):
        return _typed_choice(value, parts, where)
    if kind is Literal:
        if not isinstance(value, str) or value not in parts:
            what = f"unknown {where.rpartition('.')[2]} {reprlib.repr(value)}"
            raise not_valid(f"{what}, {where} is one of {', '.join(map(repr, parts))}")
        return value
    if kind is tuple:
        return tuple(_typed_items(value, parts, where))
    if issubclass(kind, tuple):  # a NamedTuple
        return kind(*_typed_items(value, tuple(_hints(kind).values()), where))
    if kind is Mapping:
        if not isinstance(value, Mapping):
            raise _of_another_type(where, value, "an object")
        return {typed(k, parts[0], f"a key of {where}"): typed(v, parts[1], f"{where}.{k}") for k, v in value.items()}
    return value if isinstance(value, kind) else _typed_fields(value, kind, where)


def _typed_choice(value: Any, parts: tuple[Any, ...], where: str) -> Any:
    """``X | None``, or a choice of plain types."""
    if type(None) in parts:
        return None if value is None else typed(value, parts[0], where)
    if not any(_is_plain(value, part) for part in parts):
        raise _of_another_type(where, value, " or ".join(_WORDS[part] for part in parts))
    return value


def _typed_items(value: Any, hints: tuple[Any, ...], where: str) -> list[Any]:
    """The items of a list or tuple; ``hints`` is one for each, or one for all and an Ellipsis."""
    if not isinstance(value, list | tuple):
        raise _of_another_type(where, value, "a list")
    each = hints[:1] * len(value) if hints[-1] is Ellipsis else hints
    require(len(value) == len(each), f"{where} has {len(value)} values, wanted are {len(each)}")
    return [typed(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, each, strict=True))]


def _typed_fields(value: Any, cls: Any, where: str) -> Any:
    """A description from the fields that this version knows: a later one may add some, as long as the schema stays."""
    if not isinstance(value, Mapping):
        raise _of_another_type(where, value, "an object")
    hints = _hints(cls)
    places = {name: f"{where}.{name}".removeprefix(".") for name in hints}
    for f in fields(cls):
        optional = f.default is not MISSING or f.default_factory is not MISSING
        require(optional or f.name in value, f"{places[f.name]} is missing")
    return cls(**{name: typed(value[name], hint, places[name]) for name, hint in hints.items() if name in value})


def _is_plain(value: Any, kind: type[Any]) -> bool:
    """Whether ``value`` is a str, a bool, an int that is no bool, or a finite number, as ``kind`` asks for."""
    if isinstance(value, bool) or kind is not float:
        return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _of_another_type(where: str, value: Any, wanted: str) -> ManifestError:
    return not_valid(f"{where} is {reprlib.repr(value)}, wanted is {wanted}")
