"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends well, and vanishes otherwise.

    Raises OSError where the system does not write it, ValueError for a path that can be none.
    """
    work = path.parent / f".declip-{uuid.uuid4().hex}"  # short: a legal name may fill all 255 bytes
    try:
        with work.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    except BaseException:
        with suppress(OSError, ValueError):  # why it could not be written is on its way already
            work.unlink(missing_ok=True)
        raise
