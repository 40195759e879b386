"""Descriptions that are rich enough to be relabelled, and the JSON Lines file that holds them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from declip_runtime.errors import TrainingError

from .sources import Described


@dataclass(frozen=True)
class Candidate:
    """An image with the human description that its two new ones will be grounded in.

    ``id`` follows from source, image and text alone. ``image`` is an absolute path. ``terms`` is the number of
    perceptual terms that were counted in ``source_text``.
    """

    id: str
    image: str
    source: str
    image_type: str
    source_text: str
    text_sha256: str
    terms: int

    @classmethod
    def of(cls, described: Described, terms: int) -> Candidate:
        """The candidate that a description becomes."""
        identity = "\0".join((described.source, described.name, described.text))
        slug = re.sub(r"[^a-z0-9]+", "-", described.source.casefold()).strip("-") or "source"
        return cls(
            id=f"{slug}-{hash_of(identity)[:16]}",
            image=str(described.image.resolve()),
            source=described.source,
            image_type=described.type,
            source_text=described.text,
            text_sha256=hash_of(described.text),
            terms=terms,
        )


def hash_of(text: str) -> str:
    """SHA-256 of a text in UTF-8, hexadecimal; a table in JSON may hold halves of characters, too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def candidate_lines(candidates: Iterable[Candidate]) -> Iterator[bytes]:
    """The lines of a candidates file, pure ASCII."""
    for candidate in candidates:
        yield json.dumps(asdict(candidate)).encode("ascii") + b"\n"


def read_candidates(path: Path) -> list[Candidate]:
    """Read what ``declip i2t filter`` wrote. Raises TrainingError naming the line that is damaged or repeats an id."""
    types = {f.name: int if f.name == "terms" else str for f in fields(Candidate)}
    seen: dict[str, int] = {}
    candidates = []
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is no JSON ({error})") from error
                if not isinstance(row, dict) or any(not isinstance(row.get(k), t) for k, t in types.items()):
                    raise ValueError(f"line {number} lacks one of {', '.join(types)}")
                if seen.setdefault(row["id"], number) != number:
                    raise ValueError(f"lines {seen[row['id']]} and {number} have the same id {row['id']!r}")
                candidates.append(Candidate(**{k: row[k] for k in types}))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is no file of candidates: {error}. Make it with declip i2t filter.") from error
    if not candidates:
        raise TrainingError(f"{path} holds no candidates. Make it again with declip i2t filter.")
    return candidates
