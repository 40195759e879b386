"""Numbers that users give, as floats that arithmetic in FP32 can stand, and any value in a message."""

from __future__ import annotations

from numbers import Real
from typing import Any

from declip_runtime.errors import UsageError
from declip_runtime.options import require_positive

LARGEST = 1e6
"""Far beyond any strength or guidance that means something, and far from where FP32 ends."""

_SHOWN = 60


def bounded(value: Any, least: float) -> float | None:
    """``value`` as a float where it is a number of ``least`` to ``LARGEST``, else None; True and False are none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    number: Any = value  # compared first: a long int becomes no float
    return float(number) if least <= number <= LARGEST else None


def require_count(argument: str, value: Any, most: int) -> None:
    """Raise UsageError unless ``value`` is a whole number of 1 to ``most``."""
    if isinstance(value, int) and value > most:
        raise UsageError(f"{argument}={shown(value)} cannot work. Give a whole number of 1 to {most:,}.")
    require_positive(argument, value)


def shown(value: object) -> str:
    """A value that cannot work as a message names it: cut where it is long, its type where it cannot be written."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, lists thousands deep
        return f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
