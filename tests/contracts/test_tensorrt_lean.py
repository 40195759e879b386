"""TensorRT's lean runtime, the genuine one with its library: what it does where there is no driver, which is here.

Its 46 MB are fetched once into pytest's cache, in seconds; so these tests need not be marked slow.
"""

from __future__ import annotations

import ctypes
import signal

import pytest

from .tensorrt_bindings import NEWEST, Bindings

LISTENER = """
import tensorrt_lean as trt
class Listener(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, msg):
        print(severity.name, " ".join(msg.split()), flush=True)
listener = Listener()
"""


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_a_driver = pytest.mark.skipif(_has_driver(), reason="this machine has NVIDIA's driver")


def test_it_imports_and_knows_its_version(bindings: Bindings) -> None:
    result = bindings.run_lean("import tensorrt_lean as trt\nprint(trt.__version__, hasattr(trt, 'Builder'))")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{NEWEST} False\n", "")


def test_it_takes_no_logger_for_an_error(bindings: Bindings) -> None:
    result = bindings.run_lean("import tensorrt_lean as trt\ntrt.Runtime(None)")
    assert result.returncode == 1
    assert "TypeError" in result.stderr


@without_a_driver
def test_without_a_driver_it_only_logs_that_it_cannot_start(bindings: Bindings) -> None:
    """No exception and no None: a runtime comes back, and only the log tells that there is nothing in it."""
    program = f"{LISTENER}\nruntime = trt.Runtime(listener)\nprint(type(runtime).__name__, flush=True)\nos._exit(0)"
    result = bindings.run_lean(f"import os\n{program}")
    assert result.returncode == 0, result.stderr
    *log, made = result.stdout.splitlines()
    assert made == "Runtime"
    assert log
    assert all(line.startswith(("ERROR", "INTERNAL_ERROR")) for line in log)
    assert "CUDA initialization failure" in log[0]


@without_a_driver
@pytest.mark.parametrize(
    "use", ["runtime.engine_host_code_allowed", "runtime.deserialize_cuda_engine(bytes(1000))", "del runtime"]
)
def test_without_a_driver_whatever_is_next_ends_the_process(bindings: Bindings, use: str) -> None:
    """So no handler of exceptions helps: ours must look for a driver before it makes a runtime."""
    result = bindings.run_lean(f"{LISTENER}\nruntime = trt.Runtime(listener)\n{use}\nprint('alive')")
    assert result.returncode == -signal.SIGSEGV
    assert "alive" not in result.stdout


# --- our code on it


@without_a_driver
def test_ours_looks_for_a_driver_before_anything_can_end_the_process(bindings: Bindings) -> None:
    program = """
from declip_runtime import tensorrt_library
from declip_runtime.errors import BackendUnavailableError
print(tensorrt_library.version(), tensorrt_library.is_lean())
print(tensorrt_library.unavailable())
log = tensorrt_library.Log()
try:
    tensorrt_library.read_plan(b"ftrt" + bytes(1000), log, device=0, host_code=False)
except BackendUnavailableError as error:
    print(error)
print("alive")
"""
    result = bindings.run_lean(program)
    assert result.returncode == 0, result.stderr
    version, unavailable, refused, alive = result.stdout.splitlines()
    assert version == f"{NEWEST} True"
    assert unavailable.startswith("CUDA finds no GPU")
    assert refused == unavailable
    assert alive == "alive"


@without_a_driver
def test_a_scorer_takes_the_cpu_where_the_lean_runtime_has_no_driver(bindings: Bindings) -> None:
    program = """
from declip_sdk import Scorer
from declip_runtime import backends
print(backends.available()["tensorrt"])
with Scorer() as scorer:
    print(scorer.backend != "tensorrt")
"""
    result = bindings.run_lean(program)
    assert result.returncode == 0, result.stderr
    assert "CUDA finds no GPU" in result.stdout
    assert result.stdout.endswith("True\n")
