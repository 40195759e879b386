"""Where Linux keeps the limits of this process's control groups, v1 and v2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folders that may hold a limit of ``controller`` ("cpu", "memory"), below ``root``; none where there is no cgroup.

    In a container the path is often the host's, so every ancestor is tried: not each folder exists.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for folder in (inner, *inner.parents):
                yield root / mount / folder
