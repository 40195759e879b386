from __future__ import annotations

import pytest
from rich.cells import cell_len

from declip_sdk.cli.say import say
from declip_sdk.cli.text import count, shorten, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain.jpg", "plain.jpg"),
        ("雪山 é 🏔.jpg", "雪山 é 🏔.jpg"),
        ("👩\u200d🚀.jpg", "👩\u200d🚀.jpg"),
        ("narrow\u202fspace.jpg", "narrow\u202fspace.jpg"),  # macOS screenshots
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31m", "\\x1b[31m"),
        ("exe\u202egpj", "exe\\u202egpj"),  # would turn the rest of the line round
        ("caf\udce9", "caf\\xe9"),  # a byte that is not UTF-8
        ("\ud800", "\\ud800"),
    ],
)
def test_what_could_disturb_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    shown.encode("utf-8")


def test_a_message_is_one_line_and_leaves_names_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    say("'a  b.jpg' cannot be decoded:\nit ends too early")
    assert capfd.readouterr().err == "declip: 'a  b.jpg' cannot be decoded: it ends too early\n"


@pytest.mark.parametrize("text", ["short", "a/rather/long/path/to/a/picture.jpg", "雪山の写真雪山の写真.jpg"])
@pytest.mark.parametrize("width", [1, 5, 12, 40])
def test_shortening_keeps_the_end_and_fits(text: str, width: int) -> None:
    short = shorten(text, width)
    assert cell_len(short) <= width
    assert short == text or (short.startswith("…") and text.endswith(short[1:]))
    assert short == text or cell_len(text) > width


@pytest.mark.parametrize(("width", "short"), [(1, "."), (3, "..."), (8, "...e.jpg"), (11, "picture.jpg")])
def test_an_ellipsis_of_three_cells_fits_too(width: int, short: str) -> None:
    assert shorten("picture.jpg", width, "...") == short


def test_counts_are_words() -> None:
    assert [count(n, "image") for n in (0, 1, 2, 12345)] == ["0 images", "1 image", "2 images", "12,345 images"]
