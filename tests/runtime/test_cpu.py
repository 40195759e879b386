from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from declip_runtime.cpu import _cgroup_quota, available_cpus


def write(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_at_least_one_and_no_more_than_the_machine_has() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity_counts() -> None:
    one = min(os.sched_getaffinity(0))
    program = (
        f"import os\nos.sched_setaffinity(0, {{{one}}})\nfrom declip_runtime.cpu import *\nprint(available_cpus())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"


V2 = "0::/user/job\n"
V1 = "4:memory:/job\n3:cpu,cpuacct:/docker/job\n0::/\n"


@pytest.mark.parametrize(
    ("contents", "quota"),
    [
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/user/job/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/user/job/cpu.max": "max 100000\n"}, None),
        # the limit of an ancestor holds too, and the tightest wins
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/user/job/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/user/cpu.max": "300000 100000\n",
            },
            3.0,
        ),
        # in a container the path may be the host's, and the limit lies at the root of the mount
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/job/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_control_group_quota(tmp_path: Path, contents: dict[str, str], quota: float | None) -> None:
    assert _cgroup_quota(write(tmp_path, contents)) == quota
