"""Files that one process has alone."""

from __future__ import annotations

import sys
from typing import IO

_BEYOND = 2**31 - 2  # the last byte that Windows lets a 32-bit offset name


def lock(stream: IO[bytes]) -> None:
    """Have the open file alone until it is closed, which the system sees to should this process be killed.

    Only others that call this are kept away. Raises BlockingIOError where one of them has it, OSError where the file
    system knows no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        stream.seek(_BEYOND)  # what is locked there cannot be read by others: nothing
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, "another process has it", stream.name) from error
    else:
        import fcntl

        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
