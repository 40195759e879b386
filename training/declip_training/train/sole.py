"""A folder that one run has for itself."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from declip_runtime.errors import TrainingError
from declip_runtime.locking import lock
from declip_training.files import writing

from .world import World

_PAUSE = 0.5  # seconds between two looks at a folder that is waited for


@contextmanager
def sole(folder: Path, world: World, say: Callable[[str], None], *, wait: bool = False) -> Iterator[None]:
    """Have ``folder`` for the processes of ``world`` until the block ends, or the first of them does, even by a kill.

    Where another run has it, all processes raise TrainingError; with ``wait`` the end of that run is waited for, and
    ``say`` told so. It is also told where the file system knows no locks, so that nobody can be kept away. The folder
    is made where it is missing. The file ``lock`` stays in it: were it removed, a process that has just opened it would
    lock what no later one sees.
    """
    with ExitStack() as held:
        with world.together():
            if world.leads:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    stream = held.enter_context((folder / "lock").open("a+b", buffering=0))
                _claim(stream, folder, say, wait)
        yield


def _claim(stream: FileIO, folder: Path, say: Callable[[str], None], wait: bool) -> None:
    told = False
    while other := _other(stream, folder, say):
        busy = f"{folder} is in use by another run ({other})."
        if not wait:
            raise TrainingError(f"{busy} Wait for its end, or give another folder with -o.")
        if not told:
            say(f"{busy} Its end is waited for.")
            told = True
        time.sleep(_PAUSE)
    with writing(folder / "lock"):
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}".encode())


def _other(stream: FileIO, folder: Path, say: Callable[[str], None]) -> str:
    """Who has the file; empty where it is ours now."""
    try:
        lock(stream)
    except BlockingIOError:
        stream.seek(0)
        return stream.read().decode("utf-8", "replace") or "which has just begun"
    except OSError as error:  # as of some network file systems
        say(f"{folder} cannot be locked ({error.strerror}). See to it that no other run uses it.")
    return ""
