"""What our modules do with TensorRT's builder, right and, in lines that say WRONG, wrong: see ``sample_running``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import tensorrt as trt

T = TypeVar("T")


def made(value: T | None) -> T:
    if value is None:
        raise RuntimeError
    return value


def build(head: bytes, path: str, logger: trt.ILogger, known: bytes, monitor: trt.IProgressMonitor) -> bytes:
    import tensorrt as trt

    builder = trt.Builder(logger)
    network = made(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(head, path):
        errors = [made(parser.get_error(index)) for index in range(parser.num_errors)]
        raise RuntimeError([f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors])
    config = made(builder.create_builder_config())
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    config.builder_optimization_level = 5
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = made(builder.create_optimization_profile())
    shape = tuple(made(network.get_input(0)).shape)[1:]
    profile.set_shape("images", (1, *shape), (8, *shape), (64, *shape))
    assert config.add_optimization_profile(profile) == 0
    assert config.set_timing_cache(made(config.create_timing_cache(known)), ignore_mismatch=False)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    learned = made(made(config.get_timing_cache()).serialize())
    return bytes(made(plan)) + bytes(learned)


def monitor() -> trt.IProgressMonitor:
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool:
            return step < 5

        def phase_finish(self, phase_name: str) -> None: ...

    return Monitor()


def wrong(builder: trt.Builder, config: trt.IBuilderConfig, parser: trt.OnnxParser) -> None:
    import tensorrt as trt

    config.set_flag(trt.BuilderFlag.FP16)  # WRONG from 11.0
    config.set_flag(trt.BuilderFlag.FP61)  # WRONG
    config.set_flag(trt.BuilderFlag.MONITOR_MEMORY)  # WRONG before 10.16
    config.set_flag(1)  # WRONG
    config.set_flag(trt.MemoryPoolType.WORKSPACE)  # WRONG
    config.builder_optimisation_level = 5  # WRONG
    config.builder_optimization_level = "5"  # WRONG
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY  # WRONG before 10.16
    config.int8_calibrator = None  # WRONG
    config.max_workspace_size = 1  # WRONG
    config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, size=1)  # WRONG
    config.set_timing_cache(made(config.create_timing_cache(b"")), ignore_mismatch=True)  # WRONG
    config.add_optimization_profile(made(builder.create_optimization_profile()))  # WRONG
    print(config.set_timing_cache(made(config.create_timing_cache(b""))))  # WRONG
    print(config.set_timing_cache(config.create_timing_cache(b""), False))  # WRONG
    print(builder.create_network(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))  # WRONG from 11.0
    print(builder.build_engine(made(builder.create_network(0)), config))  # WRONG
    print(builder.build_serialized_network(made(builder.create_network(0))))  # WRONG
    print(builder.platform_has_fast_fp16)  # WRONG from 11.0
    print(parser.parse("model.onnx"))  # WRONG
    print(parser.num_error)  # WRONG
    print(made(parser.get_error(0)).desc + "")  # WRONG
    print(made(parser.get_error(0)).code().name.lower())  # WRONG before 10.16
    print(parser.load_model_proto(b""))  # WRONG before 10.16


def wrong_monitor() -> None:
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def phase_begin(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> None: ...  # WRONG

        def phase_finish(self, phase_name: str, parent_phase: str) -> None: ...  # WRONG

    print(Monitor())  # WRONG
