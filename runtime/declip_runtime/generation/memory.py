"""Whether the models of an engine fit into memory at all, told before they are loaded and the system starts swapping.

Only weights are counted, in the precision that they are computed in: what they need beside that depends on sizes and
library, so a pass here is no promise, but a refusal is certain to be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from declip_runtime import onnx_head
from declip_runtime.cgroups import cgroup_folders
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import DeviceMemoryError

_FLOATS = ("float16", "float32", "bfloat16")
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# What cgroup v1 states where nobody set a limit is a number near 2^63.
_NO_LIMIT = 1 << 60


def require_memory(engine: EngineFile, components: Mapping[str, str], root: Path = Path("/")) -> None:
    """Raise DeviceMemoryError where the weights of ``components`` do not fit into the memory that is available.

    ``components`` maps those that are about to be loaded on the CPU to the precision that each computes in. Where the
    system does not tell what is available nothing is checked. ``root`` is where the system's files are looked for.
    """
    available = available_memory(root)
    if available is None:
        return
    needed = {name: weight_bytes(engine, name, precision) for name, precision in components.items()}
    if sum(needed.values()) > available:
        parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in needed.items())
        raise DeviceMemoryError(
            f"the models of {engine.manifest.name!r} need {_gigabytes(sum(needed.values()))} of memory at least"
            f" ({parts}), {_gigabytes(available)} are free. Close other programs, or choose a smaller precision or"
            " another device."
        )


def weight_bytes(engine: EngineFile, component: str, precision: str) -> int:
    """Bytes that the weights of a component take when it computes in ``precision``; those that are shared once."""
    manifest = engine.manifest
    head = engine.read(manifest.graphs[manifest.graph_name(component, "fp32")])
    tensors = {(tensor.offset, tensor.length): tensor for tensor in onnx_head.tensors(head)}
    each = _BYTES.get(precision, 1)
    return sum(_elements(t) * each if t.dtype in _FLOATS else t.length for t in tensors.values())


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: free memory, cut to what its control groups allow; None where unknown."""
    free = _free(root)
    if free is None:
        return None
    rooms = (_room(folder) for folder in cgroup_folders("memory", root))
    return max(min([free, *(room for room in rooms if room is not None)]), 0)


def _elements(tensor: onnx_head.ExternalTensor) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _free(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return None


def _room(folder: Path) -> int | None:
    """What a control group may still take, in bytes; files that it could drop from memory count as free."""
    second = (folder / "memory.max").is_file()
    limit = _number(folder / ("memory.max" if second else "memory.limit_in_bytes"))
    used = _number(folder / ("memory.current" if second else "memory.usage_in_bytes"))
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    return limit - used + _droppable(folder / "memory.stat")


def _droppable(stat: Path) -> int:
    try:
        fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
        return sum(int(fields.get(name, 0)) for name in ("inactive_file", "active_file"))
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
