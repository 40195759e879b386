"""Letters on pictures in whatever script a prompt is written: the first font that has them, and a sign for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TypeAlias

from PIL import ImageFont

from declip_runtime.errors import UsageError

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own knows Western European letters. These are common on systems, and together know most scripts.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "arial.ttf", "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc", "GeezaPro.ttc", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "Nirmala.ttf", "NotoSansThai-Regular.ttf", "NotoEmoji-Regular.ttf",
    "seguiemj.ttf",
)  # fmt: skip
_STANDS_FOR_MISSING = "?"
_ELLIPSIS = "..."  # of three letters, because not every font has the one
_NO_CHARACTER = "\uffff"


def legible(text: str, size: int, font: str | None = None) -> tuple[str, Font]:
    """A font of ``size`` pixels and ``text`` as it can be written in it, on one line.

    The font is the first that has every letter, else the one that lacks fewest; what it lacks becomes question marks.
    ``font`` names the file of the one to take. Raises UsageError where that is no font.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    letters = sorted(set(line))
    found: tuple[set[str], Font] | None = None
    for candidate in _named(font, size) if font is not None else _fonts(size):
        lacking = {letter for letter in letters if not _has(candidate, letter)}
        if found is None or len(lacking) < len(found[0]):
            found = lacking, candidate
        if not lacking:
            break
    lacking, chosen = found or (set(), ImageFont.load_default())
    return "".join(_STANDS_FOR_MISSING if letter in lacking else letter for letter in line), chosen


def wrapped(text: str, font: Font, width: int, lines: int) -> list[str]:
    """``text`` on at most ``lines`` lines no wider than ``width`` pixels, broken between words where it can be.

    What does not fit is cut off, which three dots at the end show.
    """
    done: list[str] = []
    rest = text
    while rest and len(done) < lines:
        count = _fitting(rest, font, width)
        if count < len(rest):
            space = rest.rfind(" ", 1, count + 1)
            count = space if space > 0 else count
        done.append(rest[:count].strip())
        rest = rest[count:].strip()
    if rest and done:
        last = done[-1]
        while last and font.getlength(last + _ELLIPSIS) > width:
            last = last[:-1]
        done[-1] = last.rstrip() + _ELLIPSIS
    return done


def _fitting(text: str, font: Font, width: int) -> int:
    """How many letters of ``text`` fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _named(font: str, size: int) -> Iterator[Font]:
    try:
        yield ImageFont.truetype(font, size)
    except (OSError, ImportError, ValueError) as error:
        raise UsageError(f"{font} is no font that can be used ({error}). Name a .ttf, .otf or .ttc file.") from error


def _fonts(size: int) -> Iterator[Font]:
    try:
        yield ImageFont.load_default(size)
    except ImportError:  # a Pillow that was built without FreeType writes small Western European letters only
        yield ImageFont.load_default()
        return
    for name in _SYSTEM_FONTS:
        font = _system_font(name, size)
        if font is not None:
            yield font


@cache
def _system_font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ValueError):
        return None


def _has(font: Font, character: str) -> bool:
    """Whether the font has a glyph of its own for it. FreeType draws a box for those that it lacks."""
    if character == " ":
        return True
    try:
        if isinstance(font, ImageFont.FreeTypeFont):
            return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))
        font.getmask(character)
    except (UnicodeError, OSError, ValueError):
        return False
    return True
