"""Published data sets with human descriptions of how images look, all read into one form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from declip_runtime.errors import TrainingError
from declip_training.i2t.tally import Tally

from .comments import read_comments
from .conversations import read_conversations
from .tables import read_table

NATURAL, ART, AIGC, UNKNOWN = "Natural", "Art", "AIGC", "unknown"
"""Types of images in the paper's Table 1, and the one of an image whose type nothing tells."""

_AGIQA_3K = re.compile(r"(?:^|/)(AttnGAN|DALLE2|glide|midjourney|sd1\.5|xl)[^/]*_\d+\.\w+$")
_AESMMIT_ART = re.compile(r"(?:^|/)(baid|artemis)_[^/]*$", re.IGNORECASE)
_AESMMIT_NATURAL = re.compile(r"(?:^|/)(para|tad66k)_[^/]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Described:
    """An image and what a person (ShareGPT4V: a model) wrote of it.

    ``name`` is the image's path as the data set has it, ``image`` where it lies, ``type`` one of Table 1's or another.
    """

    source: str
    name: str
    image: Path
    type: str
    text: str


@dataclass(frozen=True)
class Source:
    """A data set: its ``format`` (one of ``FORMATS``), its annotations, and the folder its image paths start from."""

    format: str
    path: Path
    images: Path

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise TrainingError(f"there is no source format {self.format!r}. Use one of: {', '.join(FORMATS)}.")
        if not self.path.exists():
            raise TrainingError(f"{self.path} does not exist. Give the annotations of {self.format}.")
        if not self.images.is_dir():
            raise TrainingError(f"{self.images} is no folder. Give the folder that the image paths start from.")

    @property
    def name(self) -> str:
        """What records of this source are labelled with: the data set's name, or that of a table's file."""
        return _whole(self.path.stem) if self.format == "table" else FORMATS[self.format][0]


@dataclass(frozen=True)
class Columns:
    """The columns of a generic table; ``type`` None where it has none."""

    image: str = "image"
    text: str = "text"
    type: str | None = None


def _sharegpt4v_type(name: str) -> str:
    return ART if name.startswith("wikiart/") else NATURAL


def _q_instruct_type(name: str) -> str:
    if name.startswith("spaq_koniq/"):
        return NATURAL
    return AIGC if _AGIQA_3K.search(name) else UNKNOWN


def _aesmmit_type(name: str) -> str:
    if _AESMMIT_ART.search(name):
        return ART
    if _AESMMIT_NATURAL.search(name):
        return NATURAL
    return AIGC if _AGIQA_3K.search(name) else UNKNOWN


FORMATS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "aesexpert": ("AesExpert", _aesmmit_type),
    "q-instruct": ("Q-Instruct", _q_instruct_type),
    "sharegpt4v": ("ShareGPT4V", _sharegpt4v_type),
    "ava-comments": ("AVA-Comments", lambda _: NATURAL),
    "table": ("", lambda _: UNKNOWN),
}
"""Name of the data set and what an image's path says of its type, by format."""


def read_source(
    source: Source, tally: Tally, *, columns: Columns | None = None, types: Sequence[tuple[str, str]] = ()
) -> Iterator[Described]:
    """Yield every usable description of a source, in its order.

    ``columns`` are those of a table. ``types`` are (pattern, type): the first pattern that fits the image's path
    decides (``*`` matches slashes too); else a table's type column, else what the format knows. What is left out is
    counted in ``tally``: unreadable entries, empty texts, missing images, images outside the folder, repeated pairs
    of image and text. Raises TrainingError for a file that cannot be read.
    """
    seen: set[int] = set()
    there: dict[str, Path | None] = {}
    for where, name, text, label in _entries(source, tally, columns or Columns()):
        text, label = _whole(text).strip(), _whole(label)
        if not text:
            tally.add("empty text", where)
            continue
        if name not in there:
            there[name] = _inside(source.images, name)
        image = there[name]
        if image is None:
            tally.add("image outside the image folder", f"{where} ({name})")
        elif not _is_file(image):
            tally.add("missing image", f"{where} ({name})")
        elif (pair := hash((image, text))) in seen:
            tally.add("repeated description", where)
        else:
            seen.add(pair)
            kind = next(
                (t for pattern, t in types if fnmatchcase(name, pattern)), label or FORMATS[source.format][1](name)
            )
            yield Described(source.name, name, image, kind, text)


def _entries(source: Source, tally: Tally, columns: Columns) -> Iterable[tuple[str, str, str, str]]:
    if source.format == "table":
        return read_table(source.path, tally, columns.image, columns.text, columns.type)
    read = read_comments if source.format == "ava-comments" else read_conversations
    return ((*entry, "") for entry in read(source.path, tally))


def _inside(folder: Path, name: str) -> Path | None:
    """The image's path; None where an annotation file points out of the folder, whose files are sent to an endpoint."""
    path = Path(name.replace("\\", "/"))
    if ".." in path.parts:
        return None
    if path.anchor:
        return path if any(path.is_relative_to(root) for root in (folder.absolute(), folder.resolve())) else None
    return folder / path


def _whole(text: str) -> str:
    """Without the halves of characters that JSON and names of files may hold: no table takes them."""
    return text.encode("utf-8", "replace").decode()


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long, no text, or holds NUL names none."""
    try:
        str(path).encode()
        return path.is_file()
    except (OSError, ValueError):
        return False
