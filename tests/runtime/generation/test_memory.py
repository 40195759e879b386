"""How much memory models need and how much there is, from a system made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import DeviceMemoryError
from declip_runtime.generation.memory import available_memory, require_memory, weight_bytes

from . import tiny_adapter

MEMINFO = "MemTotal:       4000 kB\nMemFree:         100 kB\nMemAvailable:   2000 kB\nHugePages_Total:       0\n"


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 4000 kB\n"}, None),
        ({"proc/meminfo": "MemAvailable: many\n"}, None),
        ({"proc/meminfo": MEMINFO}, 2_048_000),
        (  # v2, the tightest of the ancestors
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/jobs/mine\n",
                "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
                "sys/fs/cgroup/jobs/mine/memory.current": "5\n",
                "sys/fs/cgroup/jobs/memory.max": "1000000\n",
                "sys/fs/cgroup/jobs/memory.current": "900000\n",
                "sys/fs/cgroup/jobs/memory.stat": "anon 500\ninactive_file 20000\nactive_file 3000\n",
            },
            123_000,
        ),
        (  # v2 in a container, whose path is the host's
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/docker/abc\n",
                "sys/fs/cgroup/memory.max": "700000\n",
                "sys/fs/cgroup/memory.current": "100000\n",
            },
            600_000,
        ),
        (  # v1
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "7:cpu,cpuacct:/x\n4:memory:/y\n",
                "sys/fs/cgroup/memory/y/memory.limit_in_bytes": "400000\n",
                "sys/fs/cgroup/memory/y/memory.usage_in_bytes": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "9\n",
            },
            300_000,
        ),
        (  # over its limit already
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "5\n",
                "sys/fs/cgroup/memory.current": "7\n",
            },
            0,
        ),
        (  # more than the machine has
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "9000000\n",
                "sys/fs/cgroup/memory.current": "0\n",
            },
            2_048_000,
        ),
    ],
)
def test_available_memory(files: dict[str, str], wanted: int | None, tmp_path: Path) -> None:
    assert available_memory(system(tmp_path, files)) == wanted


def test_here_it_is_known_or_not_but_never_absurd() -> None:
    found = available_memory()
    assert found is None or 1_000_000 < found < 1 << 50


@pytest.mark.parametrize(("precision", "each"), [("fp32", 4), ("bf16", 2), ("fp16", 2), ("int8", 1)])
def test_weights_are_counted_as_they_are_computed(engine: EngineFile, precision: str, each: int) -> None:
    for component, thousands in tiny_adapter.WEIGHTS.items():
        assert weight_bytes(engine, component, precision) == 1000 * thousands * each


def test_the_sum_decides_and_the_parts_are_told(engine: EngineFile, tmp_path: Path) -> None:
    root = system(tmp_path, {"proc/meminfo": "MemAvailable: 50 kB\n"})  # 51,200
    require_memory(engine, {"unet": "fp32", "image_encoder": "fp32"}, root)  # 48,000
    with pytest.raises(DeviceMemoryError, match=r"'tiny-sd' need 0\.0 GB of memory .*unet 0\.0 GB.*are free"):
        require_memory(engine, {"unet": "fp32", "image_encoder": "fp32", "image_tokens": "fp32"}, root)
    require_memory(engine, {"unet": "bf16", "image_encoder": "fp32", "image_tokens": "fp32"}, root)


def test_where_nothing_is_known_nothing_is_refused(engine: EngineFile, tmp_path: Path) -> None:
    require_memory(engine, dict.fromkeys(tiny_adapter.WEIGHTS, "fp32"), tmp_path)
