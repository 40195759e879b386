"""Tables of Markdown show texts as they are, whatever signs these hold."""

from __future__ import annotations

import pytest

from declip_training.markdown import grid, plain, plain_grid


def test_cells_that_are_markdown_are_left_alone() -> None:
    assert grid(("a", "b"), [("`x`", "**no**")]) == "| a | b |\n| --- | --- |\n| `x` | **no** |\n"


@pytest.mark.parametrize("text", ["a*b*c", "_a_", "a|b", "<b>", "`a`", "[a](b)", "a\\|b"])
def test_a_text_is_shown_as_it_is(text: str) -> None:
    """Every sign is escaped, and nothing is lost: unescaped, it is the text."""
    shown = plain(text)
    assert shown != text
    unescaped = shown.replace("\\\\", "\0").replace("\\", "").replace("\0", "\\")
    assert unescaped == text


def test_a_text_is_one_line_and_words_keep_their_underscores() -> None:
    assert plain("two\nlines  of\tit") == "two lines of it"
    assert plain("ss02_photo_1.jpg") == "ss02_photo_1.jpg"
    assert plain_grid(("x|y",), [("a\nb",)]) == "| x\\|y |\n| --- |\n| a b |\n"
