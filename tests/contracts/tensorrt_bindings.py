"""NVIDIA's genuine bindings of every generation that we support, without a GPU and without NVIDIA's libraries.

The bindings are wheels of a megabyte, but they are linked to libraries of a gigabyte. Libraries of the same names that
export the ten functions they ask for and do nothing let them be imported, each generation in a process of its own. So
all classes, enums and signatures can be read: ``tensorrt_stubs`` and ``cuda_stubs`` write type stubs from them, and
``typed_calls`` lets mypy check our modules against each generation. For that to see everything, it demands of every
module that imports NVIDIA's libraries:

- The libraries are imported by name, inside functions, and under ``if TYPE_CHECKING`` for annotations. Where the lean
  runtime will do as well: ``try: import tensorrt as trt``, ``except ModuleNotFoundError: import tensorrt_lean as trt``.
  A module is never passed about: in a variable or as a result mypy knows nothing of it.
- A module that imports ``tensorrt`` in a function with no such fallback needs the builder. All others must pass with
  the stubs of the lean runtime too.
- No ``Any``, no ``getattr`` and its like, no ``type: ignore``, no code that mypy takes for unreachable (an ``else`` of
  ``if TYPE_CHECKING``, a test of ``sys.platform``), nothing that is in one generation only.
- Whatever TensorRT returns by pointer may be None, and so may every result of a CUDA function, beside its error code.
- What TensorRT and CUDA functions return is not dropped: it says whether they failed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXPORTED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "getInferLibVersion",
)
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvinfer_lean")
PACKAGES = ("tensorrt", "tensorrt_lean")


@dataclass(frozen=True)
class Generation:
    """One release of TensorRT, with the cuda-bindings that go with it."""

    tensorrt: str
    cuda: str
    newest_python: tuple[int, int] = (3, 13)

    def __str__(self) -> str:
        return self.tensorrt


JETPACK_6 = Generation("10.3.0", "12.9.10", newest_python=(3, 12))
LAST_OF_10 = Generation("10.16.1.11", "12.9.10")
NEWEST = Generation("11.4.0.106", "13.5.0")
GENERATIONS = (JETPACK_6, LAST_OF_10, NEWEST)


class Bindings:
    """The bindings of all generations, fetched into ``folder`` when first asked for, and kept there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stubs: dict[tuple[str, str], str] = {}

    def stubs(self, generation: Generation, lean: bool = False) -> Path:
        """A folder of stub packages: tensorrt, tensorrt_lean and cuda. ``lean``: tensorrt is the lean runtime too."""
        folder = self._folder / "stubs" / f"{generation}{'-lean' * lean}"
        lean_stub = self._stub(generation, "tensorrt_stubs.py", "tensorrt_lean_bindings", generation.tensorrt)
        full_stub = self._stub(generation, "tensorrt_stubs.py", "tensorrt_bindings", generation.tensorrt)
        _keep(folder / "tensorrt_lean" / "__init__.pyi", lean_stub)
        _keep(folder / "tensorrt" / "__init__.pyi", lean_stub if lean else full_stub)
        _keep(folder / "cuda" / "__init__.pyi", "")
        _keep(folder / "cuda" / "bindings" / "__init__.pyi", "")
        for module in ("runtime", "driver"):
            text = self._stub(generation, "cuda_stubs.py", f"cuda.bindings.{module}", generation.cuda)
            _keep(folder / "cuda" / "bindings" / f"{module}.pyi", text)
        return folder

    def run(self, generation: Generation, program: str, *, package: str = "tensorrt") -> str:
        """What a program prints that can import cuda and ``package``, one of the two, and not the other.

        The package's classes, enums and functions are the genuine ones; what they would ask the library for is nothing.
        """
        command = [sys.executable, "-c", program]
        return _output(command, self._environment(generation, package, self._inert(generation)))

    def run_lean(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run a program with the newest lean runtime and its genuine library, which is small enough to be fetched."""
        libraries = self._installed([f"tensorrt-lean-cu12-libs=={NEWEST}"], "lean-libraries")
        environment = self._environment(NEWEST, "tensorrt_lean", libraries / "tensorrt_lean_libs")
        environment["PYTHONPATH"] += os.pathsep + str(libraries)
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)

    def cache(self, name: str) -> Path:
        """A folder for what may be kept for the next run."""
        return self._folder / name

    def _stub(self, generation: Generation, program: str, module: str, version: str) -> str:
        if (module, version) in self._stubs:
            return self._stubs[module, version]
        environment = self._environment(generation, "tensorrt", self._inert(generation))
        # not by its path, for Python would look for the bindings beside it and find this file, which has their name
        text = _output([sys.executable, "-c", (HERE / program).read_text(encoding="utf-8"), module], environment)
        assert f"{module} {version}\n" in text, f"not {version} was imported"
        self._stubs[module, version] = text
        return text

    def _environment(self, generation: Generation, package: str, libraries: Path) -> dict[str, str]:
        _skip_where_there_are_no_wheels(generation)
        wheels = [f"{name}-cu12-bindings=={generation}" for name in ("tensorrt", "tensorrt-lean")]
        bindings = self._installed(wheels, f"tensorrt-{generation}")
        cuda = self._installed([f"cuda-bindings=={generation.cuda}"], f"cuda-{generation.cuda}")
        for name in PACKAGES:  # what the package of that name does, which is no wheel
            content = f"from {name}_bindings import *\nfrom {name}_bindings import __version__\n"
            _keep(self._folder / f"import-{name}" / name / "__init__.py", content)
        path = [self._folder / f"import-{package}", bindings, cuda]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "LD_LIBRARY_PATH": str(libraries)}

    def _installed(self, requirements: Iterable[str], name: str) -> Path:
        folder = self._folder / name
        if not folder.is_dir():
            if importlib.util.find_spec("pip") is None:
                pytest.fail("pip is missing, which fetches NVIDIA's bindings. Run: python -m ensurepip", pytrace=False)
            part = folder.with_suffix(f".{os.getpid()}")
            shutil.rmtree(part, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
            _output([*pip, "--only-binary=:all:", "--target", str(part), *requirements], dict(os.environ))
            _into_place(part, folder)
        return folder

    def _inert(self, generation: Generation) -> Path:
        """Libraries that export what the bindings ask for, and do nothing."""
        folder = self._folder / "inert"
        if not folder.is_dir():
            compiler = shutil.which("gcc") or shutil.which("cc")
            if compiler is None:
                pytest.fail(
                    "a C compiler is missing, without which the bindings cannot be imported. Install gcc.", False
                )
            part = folder.with_suffix(f".{os.getpid()}")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            source = part / "inert.c"
            source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in EXPORTED))
            _output([compiler, "-shared", "-fPIC", "-o", str(part / "inert.so"), str(source)], dict(os.environ))
            for major in {g.tensorrt.partition(".")[0] for g in GENERATIONS}:
                for library in LIBRARIES:
                    shutil.copy(part / "inert.so", part / f"lib{library}.so.{major}")
            _into_place(part, folder)
        return folder


def _into_place(part: Path, folder: Path) -> None:
    """Let ``folder`` be what was made in ``part``, or what another process has made of the same meanwhile."""
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(part)


def _skip_where_there_are_no_wheels(generation: Generation) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("these wheels of NVIDIA's are for Linux on x86-64")
    if sys.version_info[:2] > generation.newest_python:
        pytest.skip(f"TensorRT {generation} has no wheel for this Python")


def _output(command: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        what = " ".join(command)[:300]
        pytest.fail(f"{what}\nended with {result.returncode}:\n{result.stderr[-3000:]}", pytrace=False)
    return result.stdout


def _keep(path: Path, content: str) -> None:
    """Write what is not so yet, so that mypy finds in its cache what has not changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.write_text(content, encoding="utf-8")
