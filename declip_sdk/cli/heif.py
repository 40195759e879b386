"""HEIC and HEIF, what phones and cameras save: read where pillow-heif is installed."""

from __future__ import annotations

from functools import cache

SUFFIXES = frozenset((".heic", ".heif", ".hif"))


@cache
def register_heif() -> bool:
    """Let Pillow read HEIF, if it can; an application that embeds the library decides this for itself."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
