"""The advice that the library gives to programs, in words of the command line."""

from __future__ import annotations

_WORDS = {
    "max_pixels=": "--max-pixels ",
    "backend=": "--backend ",
    "precision=": "--precision ",
    "batch_size=": "--batch-size ",
    "Leave device out": "Leave --device out",
    "Raise max_pixels": "Raise --max-pixels",
    "Give Path(...).glob('*.jpg'), or use `declip score`": "Name the photos in it",
    "Read it and give its bytes": "Save it to a file and name that",
    "choose another folder with cache_dir=": "make the folder that `declip cache path` names writable",
    "name a folder with cache_dir= or --folder": "name a folder with --folder",
    "Give its new place as ": "Give its new place with --",
    "Give it again as ": "Give it again with --",
    "Give the old one as ": "Give the old one with --",
    "Use version_compatible too": "Use --version-compatible too",
}


def in_words_of_options(message: str) -> str:
    """The message with options and shell commands where it names arguments and code."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message
