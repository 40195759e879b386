"""What our modules do with plans and with CUDA, right and, in lines that say WRONG, wrong. Only ever type-checked.

``WRONG before 10.16`` and ``WRONG from 11.0`` name releases of TensorRT, ``WRONG lean`` its lean runtime.
"""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    import tensorrt as trt
    from cuda.bindings import runtime as cudart
else:
    sys.path.append("unseen")  # WRONG

T = TypeVar("T")


def made(value: T | None) -> T:
    if value is None:
        raise RuntimeError
    return value


@overload
def checked(result: tuple[cudart.cudaError_t]) -> None: ...
@overload
def checked(result: tuple[cudart.cudaError_t, T | None]) -> T: ...
def checked(result: tuple[cudart.cudaError_t] | tuple[cudart.cudaError_t, T | None]) -> T | None:
    from cuda.bindings import runtime as cudart

    if result[0] != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(cudart.cudaGetErrorString(result[0])[1])
    return result[1] if len(result) > 1 else None


def read(plan: bytes, logger: trt.ILogger) -> trt.IExecutionContext:
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(memoryview(plan))
    if engine is None:
        raise RuntimeError(f"TensorRT {trt.__version__} refuses it: {runtime.max_threads}")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    assert all(engine.get_tensor_dtype(name) in (trt.DataType.UINT8, trt.float32) for name in names)
    assert engine.get_tensor_mode(names[0]) == trt.TensorIOMode.INPUT
    largest = tuple(engine.get_tensor_profile_shape(names[0], 0)[2])
    context = made(engine.create_execution_context(trt.ExecutionContextAllocationStrategy.STATIC))
    if not context.set_input_shape(names[0], (1, *largest[1:])) or context.infer_shapes():
        raise RuntimeError(list(context.get_tensor_shape(names[1])))
    return context


def run(context: trt.IExecutionContext, size: int) -> None:
    from cuda.bindings import runtime as cudart

    stream = checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
    memory = checked(cudart.cudaMalloc(size))
    ok = context.set_optimization_profile_async(0, int(stream)) and context.set_tensor_address("images", memory)
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    checked(cudart.cudaMemcpyAsync(memory, memory, size, kind, stream))
    checked(cudart.cudaStreamBeginCapture(stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    if not ok or not context.execute_async_v3(stream_handle=int(stream)):
        raise RuntimeError
    graph = checked(cudart.cudaStreamEndCapture(stream))
    checked(cudart.cudaGraphLaunch(checked(cudart.cudaGraphInstantiate(graph, 0)), stream))
    error, free, total = cudart.cudaMemGetInfo()
    properties = checked(cudart.cudaGetDeviceProperties(0))
    print(error.name, free, total, properties.major + properties.minor, properties.name.decode())
    checked(cudart.cudaFree(memory))


def listener() -> trt.ILogger:
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            print(severity == trt.ILogger.Severity.ERROR, severity.name, msg)

    return Listener()


def wrong_names(context: trt.IExecutionContext, engine: trt.ICudaEngine) -> None:
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    assert context.execute_async_v4(0)  # WRONG
    assert context.execute_async_v3(stream=0)  # WRONG
    assert context.execute_async_v3()  # WRONG
    assert context.execute_async_v3(0, 0)  # WRONG
    assert context.set_tensor_address("images", "0")  # WRONG
    assert context.set_input_shape("images", 3)  # WRONG
    assert context.set_input_shape("images", ("3",))  # WRONG
    assert context.execute_async_v3(cudart.cudaStreamNonBlocking)
    context.device_memory = 1
    context.debug_sinc = True  # WRONG
    context.active_optimization_profile = 0  # WRONG
    print(context.device_memory)  # WRONG
    print(engine.num_bindings)  # WRONG
    print(engine.device_memory_size)  # WRONG from 11.0
    print(engine.create_execution_context_without_device_memory())  # WRONG from 11.0
    print(engine.create_runtime_config())  # WRONG before 10.16
    print(engine.create_execution_context().name)  # WRONG
    print(trt.DataType.FLOAT16)  # WRONG
    print(trt.DataType.FP4)  # WRONG before 10.16
    print(trt.float61)  # WRONG
    print(trt.TensorIOMode(1))  # WRONG
    print(trt.TensorIOMode.__members__["INPUT"])  # WRONG
    print(trt.Builder)  # WRONG lean
    print(trt.IExecutionContext())  # WRONG
    print(trt.Runtime(None))  # WRONG
    with context:  # WRONG
        pass


def wrong_subclasses() -> None:
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    class Misspelt(trt.ILogger):
        def logg(self, severity: trt.ILogger.Severity, msg: str) -> None: ...

    class TakesLess(trt.ILogger):
        def log(self, severity: trt.ILogger.Severity) -> None: ...  # WRONG

    class OfNothing(trt.ILoger):  # WRONG
        pass

    print(Misspelt())  # WRONG
    print(TakesLess())


def wrong_cuda() -> None:
    from cuda.bindings import runtime as cudart
    from cuda.bindings.runtime import cudaFreeHost

    checked(cudart.cudaMalock(1))  # WRONG
    checked(cudart.cudaMalloc(bytes=1))  # WRONG
    checked(cudart.cudaMalloc())  # WRONG
    checked(cudart.cudaMalloc(1, 2))  # WRONG
    print(cudart.cudaMalloc(1)[1] + 1)  # WRONG
    checked(cudart.cudaMemcpyAsync(None, 0, 1, cudart.cudaMemcpyKind.cudaMemcpyDefault, 0))  # WRONG
    checked(cudart.cudaMemcpyAsync(0, 0, 1, 1, 0))  # WRONG
    checked(cudart.cudaMemPrefetchAsync(0, 1, 0, 0))  # WRONG from 11.0
    print(cudart.cudaMemcpyKind.cudaMemcpyHostToDevise)  # WRONG
    print(checked(cudart.cudaGetDeviceProperties(0)).majr)  # WRONG
    error, count, more = cudart.cudaGetDeviceCount()  # WRONG
    print(error, count, more)
    cudart.cudaFree(0)  # WRONG
    cudaFreeHost(0)  # WRONG


def wrong_ways_round_the_check(context: trt.IExecutionContext, library: ModuleType, data: str) -> None:
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        import tensorrt_lean as trt

    context.execute_async_v3(0)  # WRONG
    anything: Any = context  # WRONG
    anything.nothing()  # WRONG
    context.nothing()  # type: ignore[attr-defined]  # WRONG
    print(getattr(context, data))  # WRONG
    print(hasattr(trt, data))  # WRONG
    print(library.Runtime)  # WRONG
    print(importlib.import_module("tensorrt").Runtime)  # WRONG
    held = trt
    print(held.Runtime)
    print(held.Runtimes)  # WRONG
    print(json.loads(data).execute_async_v3(0))  # WRONG
    found = {name: json.loads(name) for name in data}
    print(found[data](0))  # WRONG
    print([handle.nothing for handle in json.loads(data)])  # WRONG
    if sys.platform == "win32":
        print(context.nothing)  # WRONG
    if not TYPE_CHECKING:
        print(context.nothing)  # WRONG
    if context is None:
        print(context.nothing)  # WRONG
    print(f"{context.nothing} and {json.loads(data).nothing}")  # WRONG


def not_annotated(context):  # WRONG
    print(context.name)  # WRONG
