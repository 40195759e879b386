"""Sizes of memory and files as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int | None:
    """Bytes of "8GB" (10^9), "500 MiB" (2^20), "1.5g" or plain bytes; None where the text says no size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, unit, binary = match.groups(default="")
    return int(float(number) * (1024 if binary else 1000) ** (" KMGT".index(unit.upper()) if unit else 0))
