"""Compile the runtime's CUDA kernel to PTX: ``python tests/runtime/kernel_compiler.py libnvrtc.so.12``.

PTX of an old CUDA 12 for an old GPU is what every later driver and GPU takes. NVRTC, which needs no GPU, comes with
``pip download nvidia-cuda-nvrtc-cu12==12.1.105``.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from pathlib import Path

NVRTC = "12.1.105"
SOURCE = Path(__file__).parents[2] / "runtime" / "declip_runtime" / "kernels" / "resample.cu"
_OLDEST_GPU = b"--gpu-architecture=compute_60"  # it needs nothing newer


def stamp(source: bytes) -> str:
    """The first line of PTX that was made from this source."""
    return f"// Made from resample.cu, SHA-256 {hashlib.sha256(source).hexdigest()}, by NVRTC {NVRTC}.\n"


def compiled(library: Path, source: bytes) -> str:
    """The PTX of ``source``, by the NVRTC in ``library``."""
    nvrtc = ctypes.CDLL(str(library))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"resample.cu", 0, None, None))
    _check(nvrtc.nvrtcCompileProgram(program, 1, (ctypes.c_char_p * 1)(_OLDEST_GPU)))
    _check(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetPTX(program, text))
    # a header that NVRTC brings leaves constants that nothing uses
    lines = text.value.decode().splitlines(keepends=True)
    return stamp(source) + "".join(line for line in lines if "nv6target" not in line)


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"NVRTC failed with code {code}")


if __name__ == "__main__":
    SOURCE.with_suffix(".ptx").write_text(compiled(Path(sys.argv[1]), SOURCE.read_bytes()))
