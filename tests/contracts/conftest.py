from __future__ import annotations

import pytest

from .tensorrt_bindings import Bindings


@pytest.fixture(scope="session")
def bindings(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    """NVIDIA's bindings; what is fetched from the net lies in pytest's cache, where there is one, for the next run."""
    cache = getattr(pytestconfig, "cache", None)
    return Bindings(cache.mkdir("nvidia-bindings") if cache is not None else tmp_path_factory.mktemp("nvidia-bindings"))
