"""Vendor libraries, imported so that nothing is sent anywhere, nothing written into the home folder, nothing chattered.

The first two start telemetry as a side effect of ``import``: OpenVINO's Python package writes a client id and usage
counts into ``~/intel`` and posts an event; ONNX Runtime (seen with 1.31 on Linux) keeps a device id and an event
database in the user's cache folder, from native code, before any function of its own could be called to stop it. So
each is told at its import, by the means that it offers itself. If the user's program imported the library before,
what happened then is the program's own doing.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_lock = threading.RLock()


def import_openvino() -> ModuleType:
    """``openvino`` without telemetry. Raises ImportError or OSError as the import itself does.

    Its telemetry package is hidden for the duration of the import: OpenVINO then takes the inert class that it brings
    for installations without that package.
    """
    with _lock:
        if "openvino" in sys.modules:
            return importlib.import_module("openvino")
        missing = object()
        before = sys.modules.get("openvino_telemetry", missing)
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # makes its import an ImportError
        try:
            return importlib.import_module("openvino")
        finally:
            if isinstance(before, ModuleType):
                sys.modules["openvino_telemetry"] = before
            else:
                del sys.modules["openvino_telemetry"]


def import_onnxruntime() -> ModuleType:
    """``onnxruntime`` without telemetry. Raises ImportError or OSError as the import itself does.

    The variable is what its library looks at, once, when loaded; it is put back because child processes are not ours.
    """
    with _lock:
        with _variable("ORT_DISABLE_TELEMETRY", "1"):
            module = importlib.import_module("onnxruntime")
        module.disable_telemetry_events()  # for a library that the program had imported before
        return module


def import_nvimgcodec() -> ModuleType:
    """``nvidia.nvimgcodec`` without its log of every file that it cannot decode, which is told by us.

    That decoders of formats which nobody asks it for are not installed it says on standard error all the same.

    Raises ImportError or OSError as the import itself does.
    """
    with _lock, _variable("PYNVIMGCODEC_VERBOSITY", "0"):
        return importlib.import_module("nvidia.nvimgcodec")


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable, put back afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
