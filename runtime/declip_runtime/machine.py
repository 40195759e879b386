"""What a measurement was made on: the columns without which a number means nothing."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .cpu import available_cpus
from .version import __version__

# What decides how fast a CPU multiplies matrices, as Linux names it.
INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
PACKAGES = ("numpy", "pillow", "openvino", "onnxruntime")


def describe_machine(*packages: str) -> dict[str, str | int]:
    """Columns for every row of a result: date (UTC), commit, CPU, CPUs in use, instruction sets, system, versions.

    ``packages`` are distributions whose versions count beside those that run every engine; what is not installed is
    left out. ``commit`` is empty unless this runs from a git checkout; "-dirty" marks changes that were not committed.
    """
    names = dict.fromkeys((*PACKAGES, *packages))
    installed = [f"{name} {number}" for name in names if (number := _version(name))]
    info = _cpu_info()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpus": available_cpus(),
        "instruction sets": " ".join(name for name in INSTRUCTION_SETS if name in flags),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": ", ".join([f"declip-sdk {__version__}", f"python {platform.python_version()}", *installed]),
    }


def commit() -> str:
    """The git commit of this checkout; empty for an installed package and where git is absent."""
    here = Path(__file__).parent
    try:
        for arguments in (["ls-files", "--error-unmatch", Path(__file__).name], ["describe", "--always", "--dirty"]):
            result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def _cpu_info() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
