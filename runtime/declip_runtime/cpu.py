"""How many CPUs this process may use: affinity and container limits, not what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .cgroups import cgroup_folders


def available_cpus() -> int:
    """CPUs that this process may keep busy: its affinity, cut to its cgroup's quota (v1 and v2); at least 1.

    A quota of 1.5 CPUs counts as 2: the second thread is throttled, but half a CPU is not left idle.
    """
    quota = _cgroup_quota(Path("/"))
    cpus = _affinity()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota(root: Path) -> float | None:
    """The tightest CPU quota of this process's control groups and their ancestors, in CPUs; None without one."""
    quotas = [quota for folder in cgroup_folders("cpu", root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _quota(folder: Path) -> float | None:
    """Quota set in one control group's folder, in CPUs."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        if quota == "max" or int(quota) <= 0 or int(period) <= 0:
            return None
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None
