"""The source of our CUDA kernel, compiled for the CPU: the same text, run block by block and thread by thread."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import declip_runtime

SOURCE = Path(declip_runtime.__file__).parent / "kernels" / "resample.cu"
COMPILER = shutil.which("g++") or shutil.which("clang++")

# What CUDA gives a kernel, and a loop in the place of a GPU.
_HOST = """
struct Three { int x, y, z; };
static thread_local Three threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#include KERNEL
extern "C" void run(int gx, int gy, int bx, int by, const unsigned char *source, long long source_line,
                    long long source_sample, long long source_channel, unsigned char *target, long long target_line,
                    long long target_sample, const int *taps, int width, int lines, int count) {
    gridDim = {gx, gy, 1};
    blockDim = {bx, by, 1};
    for (int block = 0; block < gx * gy; ++block) {
        blockIdx = {block % gx, block / gx, 0};
        for (int thread = 0; thread < bx * by; ++thread) {
            threadIdx = {thread % bx, thread / bx, 0};
            resample(source, source_line, source_sample, source_channel, target, target_line, target_sample, taps,
                     width, lines, count);
        }
    }
}
"""
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int
_ARGUMENTS = (_POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, _LONG, _POINTER, _INT, _INT, _INT)


def build(folder: Path) -> Callable[[Sequence[int], int], Callable[[], None]]:
    """A kernel as ``fake_nvidia`` takes it. Skips the test where there is no compiler."""
    if COMPILER is None:
        pytest.skip("a C++ compiler is missing, which runs the kernel's source on the CPU")
    library = folder / "kernel.so"
    define = f'-DKERNEL="{SOURCE}"'
    command = [COMPILER, "-O2", "-shared", "-fPIC", define, "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=_HOST, text=True, check=True)
    run = ctypes.CDLL(str(library)).run
    run.argtypes, run.restype = (_INT, _INT, _INT, _INT, *_ARGUMENTS), None

    def launch(sizes: Sequence[int], arguments: int) -> Callable[[], None]:
        places = (ctypes.c_void_p * len(_ARGUMENTS)).from_address(arguments)
        values = [kind.from_address(place).value for kind, place in zip(_ARGUMENTS, places, strict=True)]
        across, down, _, wide, high, _ = sizes
        return lambda: run(across, down, wide, high, *values)

    return launch
