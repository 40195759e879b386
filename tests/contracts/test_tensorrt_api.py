"""Every TensorRT and CUDA call of ours exists, in each generation, as we make it: see ``tensorrt_bindings``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .tensorrt_bindings import GENERATIONS, JETPACK_6, LAST_OF_10, NEWEST, Bindings, Generation
from .typed_calls import ROOT, Source, needs_the_builder, problems, using

RUNTIME = ROOT / "runtime" / "declip_runtime"
OURS = using([RUNTIME])

generations = pytest.mark.parametrize("generation", GENERATIONS, ids=str)


@generations
@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
def test_our_calls_exist(bindings: Bindings, generation: Generation, lean: bool) -> None:
    """The modules that import NVIDIA's libraries are looked through entirely, the others may be given their objects."""
    paths = [path for path in sorted(RUNTIME.rglob("*.py")) if not (lean and needs_the_builder(path))]
    sources = [Source(path, _module(path), watched=path in OURS) for path in paths]
    assert any(source.watched for source in sources)
    found = problems(sources, bindings.stubs(generation, lean), bindings.cache("mypy"))
    assert not found, "\n".join(found)


def test_these_modules_are_looked_through() -> None:
    """A new one is found by itself; if one is missing here, the search does not see it any more."""
    assert {"cuda", "plan_builder", "plan_lane", "tensorrt_library"} <= {path.stem for path in OURS}
    assert "plan_builder" in {path.stem for path in OURS if needs_the_builder(path)}


def test_only_the_runtime_imports_them() -> None:
    """Others go through ``declip_runtime.cuda`` and its neighbours, whose calls are checked."""
    others = [ROOT / folder for folder in ("declip_sdk", "export", "training", "benchmarks", "examples")]
    assert using(others) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import tensorrt", True),
        ("def f():\n    import numpy, tensorrt_lean as trt", True),
        ("if TYPE_CHECKING:\n    from tensorrt import Runtime", True),
        ("def f():\n    from cuda.bindings import runtime as cudart", True),
        ("from cuda import cudart", True),
        ("trt = importlib.import_module('tensorrt')", True),
        ("trt = __import__(name='tensorrt')", True),
        ("NAMES = ('tensorrt', 'tensorrt_lean')", True),
        ("NAME = 'cuda.bindings.runtime'", True),
        ("from . import cuda", False),
        ("from .backends.tensorrt import Backend", False),
        ("BACKENDS = {'tensorrt': 'module:Class'}", False),
        ("is_cuda = device.startswith('cuda')", False),
    ],
)
def test_whatever_imports_them_is_found(text: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "module.py").write_text(text)
    assert using([tmp_path]) == ([tmp_path / "deep" / "module.py"] if found else [])


# --- the check is checked: what is wrong in a line is said in it, and nothing else is reported

HERE = Path(__file__).parent
WRONG = re.compile(r"# WRONG(?: (before|from) (\d+\.\d+)| (lean))?$")


@generations
@pytest.mark.parametrize(
    ("sample", "lean"),
    [("running", False), ("running", True), ("building", False)],
    ids=["running", "lean", "building"],
)
def test_every_mistake_is_reported(bindings: Bindings, generation: Generation, sample: str, lean: bool) -> None:
    path = HERE / f"sample_{sample}.py"
    assert needs_the_builder(path) == (sample == "building")
    source = Source(path, path.stem, watched=True)
    reported = problems([source], bindings.stubs(generation, lean), bindings.cache("mypy"))
    lines = {int(text.split(":")[1]): text for text in reported}
    wrong = {n for n, text in enumerate(path.read_text().splitlines(), 1) if _is_wrong(text, generation, lean)}
    assert wrong
    assert {line: lines.get(line, "not reported") for line in sorted(wrong ^ lines.keys())} == {}


def _is_wrong(line: str, generation: Generation, lean: bool) -> bool:
    found = WRONG.search(line)
    if not found:
        return False
    when, version, only_lean = found.groups()
    here = _version(generation.tensorrt)
    return (
        (lean if only_lean else True)
        and (when != "before" or here < _version(version))
        and (when != "from" or here >= _version(version))
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


# --- the stubs are true where they say more than the bindings' signatures


@generations
def test_what_the_signatures_leave_out(bindings: Bindings, generation: Generation) -> None:
    """Shapes are sequences, and tuples where they are taken; enums have numbers; interfaces do nothing themselves."""
    program = """
import tensorrt as trt
shape = trt.Dims((2, 3, 5))
assert (tuple(shape), len(shape), shape[1], list(shape)) == ((2, 3, 5), 3, 3, [2, 3, 5])
description = trt.PluginTensorDesc()
description.dims = (7, 8)
description.dims = [7, 8]
assert tuple(description.dims) == (7, 8)
assert int(trt.BuilderFlag.TF32) == trt.BuilderFlag.TF32.value and trt.BuilderFlag.TF32.name == "TF32"
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, msg):
        pass
class Monitor(trt.IProgressMonitor):
    def __init__(self):
        trt.IProgressMonitor.__init__(self)
Log().log(trt.ILogger.Severity.ERROR, "")
try:
    Monitor().phase_start("", "", 1)
except RuntimeError as error:
    assert "pure virtual" in str(error)
try:
    trt.IBuilderConfig()
except TypeError as error:
    assert "No constructor" in str(error)
try:
    trt.Runtime(Log())
except TypeError as error:
    print(trt.__version__, 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), error)
"""
    said = bindings.run(generation, program)
    flag = 1 if generation is NEWEST else 2
    assert said == f"{generation} {flag} pybind11::init(): factory function returned nullptr\n"


@pytest.mark.parametrize("generation", [LAST_OF_10, NEWEST], ids=lambda g: g.cuda)
def test_cuda_functions_return_as_many_values_as_their_stubs(bindings: Bindings, generation: Generation) -> None:
    """Without a GPU the values are None, and the error code says why."""
    stub = (bindings.stubs(generation) / "cuda" / "bindings" / "runtime.pyi").read_text()
    calls = {"cudaGetDeviceCount": "", "cudaMemGetInfo": "", "cudaMalloc": "1", "cudaStreamCreate": "", "cudaFree": "0"}
    calls |= {"cudaDriverGetVersion": "", "cudaSetDevice": "0", "cudaGetErrorString": "cudart.cudaError_t(35)"}
    program = "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\nfrom cuda.bindings import runtime as cudart\n"
    program += "".join(f"print(len(cudart.{name}({arguments})))\n" for name, arguments in calls.items())
    program += "assert cudart.cudaGetDeviceCount()[1] is None\nassert int(cudart.cudaStream_t(5)) == 5\n"
    program += "assert type(cudart.cudaGetErrorString(cudart.cudaError_t(35))[1]) is bytes\n"
    counted = [int(line) for line in bindings.run(generation, program).split()]
    promised = [re.search(rf"def {name}\(.*-> builtins\.tuple\[(.*)\]", stub)[1].count(",") + 1 for name in calls]  # type: ignore[index]
    assert counted == promised


@generations
def test_nothing_in_the_stubs_is_any(bindings: Bindings, generation: Generation) -> None:
    for path in bindings.stubs(generation).rglob("*.pyi"):
        assert not re.search(r"\bAny\b", path.read_text()), path


def test_the_generations_differ(bindings: Bindings) -> None:
    """Otherwise checking one would do, and the wrong one may have been imported."""
    first, last = (
        _members(bindings.stubs(g) / "tensorrt" / "__init__.pyi", "BuilderFlag") for g in (JETPACK_6, NEWEST)
    )
    assert first - last >= {"FP16", "INT8", "BF16"}
    assert last - first >= {"MONITOR_MEMORY"}
    assert first & last >= {"TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}


def _members(stub: Path, name: str) -> set[str]:
    classes = [
        node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return {ast.unparse(node.target) for node in classes[0].body if isinstance(node, ast.AnnAssign)}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(RUNTIME.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_our_listeners_are_what_the_real_bindings_take(bindings: Bindings, generation: Generation) -> None:
    """Our subclasses are made and called through the genuine base classes, and an exception of theirs is ours."""
    program = """
import tensorrt as trt
from declip_runtime.errors import BackendExecutionError
from declip_runtime.plan_builder import _Monitor
from declip_runtime.tensorrt_library import Log, version
log = Log()
for severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING, trt.ILogger.Severity.INFO):
    log.listener.log(severity, f"told\\n as {severity.name}")
print(log)
told = []
monitor = _Monitor(lambda phase, share: told.append(round(share, 2)))
listener = monitor.listener()
print(isinstance(listener, trt.IProgressMonitor), isinstance(log.listener, trt.ILogger))
listener.phase_start("all", None, 2)
print(listener.step_complete("all", 0))
monitor.cancelled.set()
print(listener.step_complete("all", 1), told)
try:
    with log.quoted("testing"):
        log.listener.log(trt.ILogger.Severity.ERROR, "no library")
        trt.Builder(log.listener)  # the inert library has none to give
except BackendExecutionError as error:
    print("no library" in str(error), "told as ERROR" in str(error))
print(version())
"""
    assert bindings.run(generation, program).splitlines() == [
        "told as ERROR | told as WARNING",
        "True True",
        "True",
        "False [0.0, 0.5, 1.0]",
        "True False",
        str(generation),
    ]
