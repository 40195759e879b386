"""What a feature bank knows of the images in one of its blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from declip_runtime.errors import TrainingError
from declip_training.files import read_json, replacing

from .images import FileFacts


@dataclass(frozen=True)
class Block:
    """``files`` are what was read for each row (None: nothing could be), ``unreadable`` says by row why there is no
    picture; ``cut`` texts were longer than the text tower reads (None: unknown).
    """

    files: list[FileFacts | None]
    unreadable: Mapping[int, str]
    cut: int | None

    @classmethod
    def read(cls, path: Path, rows: range) -> Block:
        """The block of ``rows``. Raises TrainingError where the file is damaged or of other rows."""
        stored = read_json(path)
        try:
            files = [None if f is None else FileFacts(int(f[0]), int(f[1]), str(f[2])) for f in stored["files"]]
            unreadable = {int(row): str(reason) for row, reason in stored["unreadable"].items()}
            cut = None if stored["cut"] is None else int(stored["cut"])
            if len(files) != len(rows) or not unreadable.keys() <= set(rows):
                raise ValueError("it is of other rows")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(
                f"{path} is damaged. Remove it and run again: the images of its block are read once more."
            ) from error
        return cls(files, unreadable, cut)

    def write(self, path: Path) -> None:
        """Write it, all or nothing."""
        files = [None if f is None else list(asdict(f).values()) for f in self.files]
        reasons = {str(row): reason for row, reason in self.unreadable.items()}
        with replacing(path) as partial:
            # ASCII, because paths that are no UTF-8 must be written too
            partial.write_text(json.dumps({"files": files, "unreadable": reasons, "cut": self.cut}), encoding="ascii")
