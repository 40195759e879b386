"""What a scorer can be asked for, and what of it cannot work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from .errors import UsageError
from .images import Channels

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"]
Decode = Literal["fast", "exact", "gpu"]
OnError = Literal["raise", "record"]

MAX_VIEWS = 100
"""More would see nothing new, and each takes memory."""


@dataclass(frozen=True)
class Options:
    """What a scorer was asked for; enough to make the same one in another process."""

    engine: str | None
    backend: str
    device: str | None
    precision: Precision
    batch_size: int | None
    threads: int | None
    decode: Decode
    views: int
    channels: Channels
    max_pixels: int
    cache_dir: str | None
    verify: bool

    def __post_init__(self) -> None:
        require_one_of("precision", self.precision, get_args(Precision))
        require_one_of("decode", self.decode, get_args(Decode))
        require_one_of("channels", self.channels, get_args(Channels))
        require_positive("views", self.views)
        if self.views > MAX_VIEWS:
            raise UsageError(f"views={self.views} is too many. Use 1 to {MAX_VIEWS}; 5 already looks closely.")
        require_positive("max_pixels", self.max_pixels)
        if self.batch_size is not None:
            require_positive("batch_size", self.batch_size)
        if self.threads is not None:
            require_positive("threads", self.threads)
        for name in ("views", "max_pixels", "batch_size", "threads"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, int(value))  # of NumPy's integers, which JSON does not know

    @property
    def decoding(self) -> Decode:
        """How photos are really decoded: more views than one need every pixel."""
        return "exact" if self.decode == "fast" and self.views > 1 else self.decode


def absolute_path(argument: str, value: str | os.PathLike[str] | None) -> str | None:
    """The path made absolute, because a scorer may be unpickled in another working directory; None stays None."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{argument} must be a path, not {type(value).__name__}.")
    if not os.fspath(value):
        raise UsageError(f"{argument} is empty. Give a path, or leave it out.")
    return os.path.abspath(os.fsdecode(value))  # noqa: PTH100 - resolve() would follow links


def require_one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UsageError naming the allowed values."""
    if value not in allowed:
        raise UsageError(f"{argument}={value!r} is unknown. Use one of: {', '.join(allowed)}.")


def require_positive(argument: str, value: int) -> None:
    """Raise UsageError unless the value is a whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{argument}={value!r} cannot work. Give a whole number of at least 1.")
