"""Whatever happens to the bytes of an engine file, it is an EngineError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import EngineError
from runtime import tiny_engine


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    engine = tiny_engine.write(tmp_path_factory.mktemp("engine") / "tiny.engine")
    return engine.path, engine.path.read_bytes()


def require_error(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(EngineError):
        EngineFile.open(path).verify()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_one_changed_byte(content: tuple[Path, bytes], data: st.DataObject) -> None:
    path, good = content
    at = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(1, 255))
    require_error(path, good[:at] + bytes([good[at] ^ value]) + good[at + 1 :])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_range_cut_out_or_put_in(content: tuple[Path, bytes], data: st.DataObject) -> None:
    path, good = content
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start, len(good)))
    insert = data.draw(st.binary(max_size=40))
    changed = good[:start] + insert + good[end:]
    if changed != good:
        require_error(path, changed)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_any_other_file(content: tuple[Path, bytes], data: bytes) -> None:
    path, good = content
    require_error(path, data)
    require_error(path, good[:64] + data)
