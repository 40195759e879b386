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
from declip_training.files import lock, writing

from .world import World

_PAUSE = 0.5  # seconds between two looks at a folder that is waited for


@contextmanager
def sole(folder: Path, world: World, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Have ``folder`` for the processes of ``world`` until the block ends, or the first of them does, even by a kill.

    Where another run has it, ``wait`` is told so and the end of that run waited for; without ``wait`` all processes
    raise TrainingError. The folder is made where it is missing. The file ``lock`` stays in it: were it removed, a
    process that has just opened it would lock what no later one sees.
    """
    with ExitStack() as held:
        with world.together():
            if world.leads:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    stream = held.enter_context((folder / "lock").open("a+b", buffering=0))
                _claim(stream, folder, wait)
        yield


def _claim(stream: FileIO, folder: Path, wait: Callable[[str], None] | None) -> None:
    told = False
    while other := _other(stream):
        busy = f"{folder} is in use by another run ({other})."
        if wait is None:
            raise TrainingError(f"{busy} Wait for its end, or give another folder with -o.")
        if not told:
            wait(f"{busy} Its end is waited for.")
            told = True
        time.sleep(_PAUSE)
    with writing(folder / "lock"):
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}".encode())


def _other(stream: FileIO) -> str:
    """Who has the file; empty where it is ours now."""
    try:
        lock(stream)
    except BlockingIOError:
        stream.seek(0)
        return stream.read().decode("utf-8", "replace") or "which has just begun"
    except OSError:  # some network file systems know no locks: then nobody can be kept away
        pass
    return ""
