from __future__ import annotations

import errno
import json
import os
import random
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from declip_runtime import container, onnx_head
from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.engine_writer import add_plans, pack, write_engine
from declip_runtime.errors import (
    EngineCorruptError,
    EngineError,
    EngineNotFoundError,
    EngineTruncatedError,
    EngineVersionError,
    ManifestError,
    NotAnEngineError,
    UsageError,
)
from declip_runtime.manifest import PREPROCESSING_VERSION, SCHEMA, Plan
from declip_runtime.signature import Range

from . import tiny_engine
from .tiny_engine import CALIBRATED, MANIFEST

PLAN = Plan("plans/sm_89.plan", "10.3", "8.9", "fp16", "0" * 64, Range(1, 8, 32))


@pytest.fixture
def engine(tmp_path: Path) -> EngineFile:
    return tiny_engine.write(tmp_path / "tiny.engine", int8=True)


def damage(engine: EngineFile, at: int, *, by: bytes | None = None) -> Path:
    data = bytearray(engine.path.read_bytes())
    replacement = by or bytes([data[at] ^ 0x20])
    data[at : at + len(replacement)] = replacement
    path = engine.path.with_name("damaged.engine")
    path.write_bytes(data)
    return path


# --- the form


def test_any_zip_tool_reads_it(engine: EngineFile) -> None:
    with zipfile.ZipFile(engine.path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == ["weights.bin", "graphs/fp32.onnx", "graphs/int8.onnx", "manifest.json"]
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.read("weights.bin") == tiny_engine.Weights.random().to_bytes()
        assert json.loads(archive.read("manifest.json"))["engine_id"] == engine.id


def test_entries_lie_on_pages(engine: EngineFile) -> None:
    data = engine.path.read_bytes()
    for name in engine.manifest.entries:
        offset, content = engine.offset(name), engine.read(name)
        assert offset % 4096 == 0
        assert data[offset : offset + len(content)] == content
        assert bytes(engine.map(name)) == content
    with pytest.raises(ValueError, match="read-only"):
        engine.map("weights.bin")[0] = 1


def test_nothing_can_be_an_entry(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "x.engine", MANIFEST, {"weights.bin": b"", "graphs/fp32.onnx": b"x"})
    engine.verify()
    assert (engine.read("weights.bin"), engine.map("weights.bin").size) == (b"", 0)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = (tiny_engine.write(tmp_path / name) for name in ("a.engine", "b.engine"))
    assert first.path.read_bytes() == second.path.read_bytes()


def test_opening_does_not_read_weights(tmp_path: Path) -> None:
    """The weights of a file full of holes are zeros of the wrong hash, which only verify may notice."""
    engine = tiny_engine.write(tmp_path / "tiny.engine")
    start = engine.offset("weights.bin")
    path = damage(engine, start, by=bytes(engine.manifest.entries["weights.bin"].size))
    assert EngineFile.open(path).id == engine.id


@pytest.mark.parametrize("boundary", [3, 4000, 13_000])
def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boundary: int) -> None:
    """With the boundary moved down from 4 GiB, to write less; the slow test below crosses the real one."""
    monkeypatch.setattr(container, "_ZIP64_FROM", boundary)
    engine = tiny_engine.write(tmp_path / "tiny.engine")
    engine.verify()
    with zipfile.ZipFile(engine.path) as archive:
        assert archive.testzip() is None
        assert archive.read("graphs/fp32.onnx") == engine.read("graphs/fp32.onnx")


@pytest.mark.slow
def test_an_entry_over_4_gib(tmp_path: Path) -> None:
    size = (4 << 30) + 12345
    piece = bytes(1 << 20)
    entries = {
        "weights.bin": (piece[: min(len(piece), size - at)] for at in range(0, size, len(piece))),
        "graphs/fp32.onnx": tiny_engine.graph(shift=size - (1 << 20)),
    }
    engine = write_engine(tmp_path / "big.engine", MANIFEST, entries)
    engine.verify()
    assert engine.offset("graphs/fp32.onnx") > 4 << 30
    with zipfile.ZipFile(engine.path) as archive:
        assert archive.getinfo("weights.bin").file_size == size
        assert archive.read("graphs/fp32.onnx") == engine.read("graphs/fp32.onnx")


# --- five clear errors, and a sixth


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EngineNotFoundError, match="there is no engine at"):
        EngineFile.open(tmp_path / "no.engine")


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.5, 0.9, 0.999])
def test_truncated(engine: EngineFile, share: float) -> None:
    data = engine.path.read_bytes()
    engine.path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(EngineTruncatedError, match="ends too early"):
        EngineFile.open(engine.path)


def test_damaged_weights_are_found_by_verify(engine: EngineFile) -> None:
    opened = EngineFile.open(damage(engine, engine.offset("weights.bin") + 77))
    with pytest.raises(EngineCorruptError, match=r"weights\.bin in .* does not match its hash"):
        opened.verify()


def test_damaged_graph_is_found_when_read(engine: EngineFile) -> None:
    opened = EngineFile.open(damage(engine, engine.offset("graphs/fp32.onnx") + 77))
    with pytest.raises(EngineCorruptError, match=r"graphs/fp32\.onnx"):
        opened.graph("fp32", "x")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}', "schema"),
        (f'"version": {PREPROCESSING_VERSION}', f'"version": {PREPROCESSING_VERSION + 1}', r"preprocess\.version"),
    ],
)
def test_an_engine_of_a_newer_sdk(tmp_path: Path, engine: EngineFile, old: str, new: str, what: str) -> None:
    text = engine.manifest.to_json()
    assert text.count(old) == 1
    path = tmp_path / "new.engine"
    contents = [(name, engine.read(name)) for name in engine.manifest.entries]
    layout(path, [*contents, ("manifest.json", text.replace(old, new).encode())])
    with pytest.raises(EngineVersionError, match=rf"new\.engine: .*{what} .*pip install -U declip-sdk"):
        EngineFile.open(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", tiny_engine.graph(), "bare ONNX graph.*declip pack"),
        ("model.plan", b"\0\1\2", "bare TensorRT plan.*declip pack"),
        ("trtexec.engine", b"ftrt" + bytes(100), "bare TensorRT plan.*declip pack"),
        ("photo.engine", b"\xff\xd8\xff\xe0" + bytes(100), "not an engine file"),
        ("text.engine", b"hello", "not an engine file"),
    ],
)
def test_another_kind_of_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NotAnEngineError, match=message):
        EngineFile.open(tmp_path / name)


def test_a_folder_is_told_how_to_become_an_engine(tmp_path: Path) -> None:
    with pytest.raises(NotAnEngineError, match="declip pack"):
        EngineFile.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.engine")
    with pytest.raises(NotAnEngineError, match=r"pipe\.engine is a pipe"):
        EngineFile.open(tmp_path / "pipe.engine")


def test_an_empty_path_is_not_the_working_directory() -> None:
    with pytest.raises(EngineNotFoundError, match="is empty"):
        EngineFile.open("")


def test_a_name_that_the_system_does_not_take_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        EngineFile.open(tmp_path / ("x" * 300))


def test_a_manifest_that_lists_other_entries(tmp_path: Path, engine: EngineFile) -> None:
    path = tmp_path / "other.engine"
    with path.open("wb") as file:
        names = [n for n in engine.manifest.entries if n != "graphs/int8.onnx"]
        members = [container.append(file, n, [engine.read(n)], lambda _: None) for n in names]
        members.append(container.append(file, "manifest.json", [engine.manifest.to_json().encode()], lambda _: None))
        container.finish(file, members)
    with pytest.raises(EngineCorruptError, match="does not hold the entries"):
        EngineFile.open(path)


# --- archives by others, hostile ones included


def rewritten(engine: EngineFile, **options: int) -> Path:
    """The same entries, as Python's zipfile writes them."""
    path = engine.path.with_name("rewritten.engine")
    with zipfile.ZipFile(engine.path) as old, zipfile.ZipFile(path, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return path


def test_rezipped(engine: EngineFile) -> None:
    with pytest.raises(EngineError):
        EngineFile.open(rewritten(engine))


def test_compressed_entries(engine: EngineFile) -> None:
    with pytest.raises(EngineError):
        EngineFile.open(rewritten(engine, compression=zipfile.ZIP_DEFLATED))


def test_another_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.engine", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(NotAnEngineError, match="an archive, but not written as an engine"):
        EngineFile.open(tmp_path / "x.engine")


def test_appended_bytes(engine: EngineFile) -> None:
    with engine.path.open("ab") as file:
        file.write(b"#!/bin/sh\n")
    with pytest.raises(EngineError):
        EngineFile.open(engine.path)


@pytest.mark.parametrize("name", ["../../evil.txt", "/etc/passwd", "c:\\x", "graphs/../../x.bin", "A.bin", "nul\0.x"])
def test_names_that_lead_elsewhere_are_neither_written_nor_read(tmp_path: Path, engine: EngineFile, name: str) -> None:
    entries: dict[str, bytes] = {n: engine.read(n) for n in engine.manifest.entries}
    with pytest.raises(UsageError, match="not allowed"):
        write_engine(tmp_path / "x.engine", engine.manifest, {**entries, name: b"x"})
    # what a hostile writer would make: a good archive in which one name was changed, everywhere it stands
    good = write_engine(tmp_path / "good.engine", engine.manifest, {**entries, "a" * len(name): b"x"})
    good.path.write_bytes(good.path.read_bytes().replace(b"a" * len(name), name.encode()))
    with pytest.raises(EngineCorruptError, match="not allowed"):
        EngineFile.open(good.path)


def layout(path: Path, members: list[tuple[str, bytes]], overlap: bool = False) -> None:
    """A container whose directory tells a lie that the honest writer would not."""
    with path.open("wb") as file:
        written = [container.append(file, name, [data], lambda _: None) for name, data in members]
        if overlap:
            written[-1] = replace(written[-1], start=written[0].start)
        container.finish(file, written)


def test_duplicate_names(tmp_path: Path) -> None:
    layout(tmp_path / "x.engine", [("weights.bin", b"1"), ("weights.bin", b"1")])
    with pytest.raises(EngineCorruptError, match="two entries share a name"):
        EngineFile.open(tmp_path / "x.engine")


def test_overlapping_entries(tmp_path: Path) -> None:
    layout(tmp_path / "x.engine", [("weights.bin", b"1" * 9), ("manifest.json", b"2" * 9)], overlap=True)
    with pytest.raises(EngineCorruptError):
        EngineFile.open(tmp_path / "x.engine")


def test_a_size_beyond_the_file(engine: EngineFile) -> None:
    """A bomb announces terabytes; the sum of sizes must be the file's own."""
    data = engine.path.read_bytes()
    size = engine.manifest.entries["weights.bin"].size.to_bytes(4, "little")
    engine.path.write_bytes(data.replace(size, b"\xfe\xff\xff\xff"))
    with pytest.raises(EngineError):
        EngineFile.open(engine.path)


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    """Every byte of headers, directory and manifest, and a sample of padding and content."""
    engine = tiny_engine.write(tmp_path / "tiny.engine")
    data = engine.path.read_bytes()
    offsets = [engine.offset(n) for n in engine.manifest.entries]
    ends = [o + e.size for o, e in zip(offsets, engine.manifest.entries.values(), strict=True)]
    edges = [position + d for position in (0, *offsets, *ends) for d in range(-40, 60, 2)]
    tail = range(ends[-1] + 3500, len(data), 5)
    sample = random.Random(1).sample(range(len(data)), 150)
    for at in sorted({*edges, *tail, *sample}):
        if 0 <= at < len(data):
            path = tmp_path / "flipped.engine"
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
            with pytest.raises(EngineError):
                EngineFile.open(path).verify()


# --- identity


def test_a_plan_changes_no_identity(engine: EngineFile) -> None:
    before = engine.id
    added = add_plans(engine.path, [(PLAN, b"plan one")])
    assert added.id == before
    assert added.read("plans/sm_89.plan") == b"plan one"
    replaced = add_plans(engine.path, [(replace(PLAN, tensorrt="11.4"), b"plan two")])
    assert [p.tensorrt for p in replaced.manifest.plans] == ["11.4"]
    assert replaced.read("plans/sm_89.plan") == b"plan two"
    replaced.verify()


def test_plans_are_not_added_to_damaged_or_installed_engines(tmp_path: Path, engine: EngineFile) -> None:
    damaged = damage(engine, engine.offset("weights.bin"))
    content = damaged.read_bytes()
    with pytest.raises(EngineCorruptError):
        add_plans(damaged, [(PLAN, b"plan")])
    assert damaged.read_bytes() == content
    installed = tmp_path / "site-packages" / "x.engine"
    installed.parent.mkdir()
    installed.write_bytes(engine.path.read_bytes())
    with pytest.raises(UsageError, match="Write a copy"):
        add_plans(installed, [(PLAN, b"plan")])
    with pytest.raises(UsageError, match="plans/"):
        add_plans(engine.path, [(replace(PLAN, entry="weights.bin"), b"plan")])


def test_what_decides_a_score_decides_the_id(tmp_path: Path, engine: EngineFile) -> None:
    other_weights = tiny_engine.write(tmp_path / "w.engine", seed=1, int8=True)
    other_scale = tiny_engine.write(tmp_path / "s.engine", int8=True, manifest=replace(MANIFEST, logit_scale=50.0))
    other_text = tiny_engine.write(tmp_path / "t.engine", int8=True, manifest=replace(MANIFEST, name="another name"))
    assert len({engine.id, other_weights.id, other_scale.id}) == 3
    assert other_text.id == engine.id


def test_a_file_replaced_while_in_use_is_noticed(tmp_path: Path, engine: EngineFile) -> None:
    tiny_engine.write(tmp_path / "new.engine", seed=1).path.replace(engine.path)
    with pytest.raises(EngineCorruptError, match="replaced while it was in use"):
        engine.map("weights.bin")
    engine.path.unlink()
    with pytest.raises(EngineNotFoundError):
        engine.verify()


# --- writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, engine: EngineFile) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_engine(engine.path, MANIFEST, {"weights.bin": broken(), "graphs/fp32.onnx": b""})
    assert EngineFile.open(engine.path).id == engine.id
    assert list(tmp_path.iterdir()) == [engine.path]


def test_a_full_disk_is_named_and_leaves_the_old_file(
    tmp_path: Path, engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*tiny\.engine: No space left") as caught:
        tiny_engine.write(engine.path, seed=1)
    assert isinstance(caught.value.__cause__, OSError)
    assert EngineFile.open(engine.path).id == engine.id
    assert list(tmp_path.iterdir()) == [engine.path]


def test_content_that_cannot_be_read_is_the_one_to_blame(tmp_path: Path) -> None:
    entries = {"graphs/fp32.onnx": b"", "weights.bin": tmp_path / "gone.bin"}
    with pytest.raises(UsageError, match=r"gone\.bin cannot be read"):
        write_engine(tmp_path / "x.engine", MANIFEST, entries)


@pytest.mark.parametrize("length", [230, 250])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, length: int) -> None:
    engine = tiny_engine.write(tmp_path / ("x" * length))
    engine.unpack(tmp_path / ("y" * length))
    assert sorted(len(p.name) for p in tmp_path.iterdir()) == [length, length]


@pytest.mark.parametrize("place", [".", "", "/"])
def test_a_folder_is_no_place_for_an_engine(
    place: str, tmp_path: Path, engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"is a folder\. Name a file"):
        write_engine(place, MANIFEST, {"weights.bin": b"", "graphs/fp32.onnx": b""})


def test_entries_from_bytes_files_and_pieces(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"abc" * 700_000)
    head = tiny_engine.graph()
    pieces = iter([head[:10], b"", head[10:]])
    engine = write_engine(tmp_path / "x.engine", MANIFEST, {"graphs/fp32.onnx": pieces, "weights.bin": tmp_path / "w"})
    assert engine.read("weights.bin") == b"abc" * 700_000
    assert engine.read("graphs/fp32.onnx") == head


def test_missing_entries_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights\.bin"):
        write_engine(tmp_path / "x.engine", MANIFEST, {"graphs/fp32.onnx": b""})
    with pytest.raises(UsageError, match=r"graphs/fp32\.onnx"):
        write_engine(tmp_path / "x.engine", MANIFEST, {"weights.bin": b""})


def test_an_unknown_entry_names_the_known(engine: EngineFile) -> None:
    with pytest.raises(EngineError, match=r"graphs/int8\.onnx"):
        engine.read("graphs/fp16.onnx")


# --- graphs


def test_a_graph_refers_to_the_weights_inside_the_engine(engine: EngineFile) -> None:
    data = engine.path.read_bytes()
    first, second = onnx_head.tensors(engine.graph("fp32", "somewhere.engine"))
    assert first.location == second.location == "somewhere.engine"
    stored = np.frombuffer(data, np.float16, second.length // 2, second.offset).reshape(second.dims)
    assert np.array_equal(stored, tiny_engine.Weights.random().prompts)


@pytest.mark.parametrize("head", [tiny_engine.graph(shift=8), tiny_engine.graph(location="/etc/passwd")])
def test_tensors_outside_the_weights_are_refused(tmp_path: Path, head: bytes) -> None:
    weights = tiny_engine.Weights.random().to_bytes()
    engine = write_engine(tmp_path / "x.engine", MANIFEST, {"graphs/fp32.onnx": head, "weights.bin": weights})
    with pytest.raises(EngineCorruptError, match="lies outside"):
        engine.graph("fp32", "x")


def test_a_graph_that_refers_to_memory_is_refused(tmp_path: Path) -> None:
    """Its addresses would be read from, or crash, the process that loads it; also where no initialiser says so."""
    constant = tiny_engine.external("c", (2,), 4096, location=onnx_head.IN_MEMORY)
    hidden = tiny_engine.node("Constant", "", "c", tiny_engine.block(1, "value") + tiny_engine.block(5, constant))
    head = tiny_engine.graph() + tiny_engine.block(7, tiny_engine.block(1, hidden))
    entries = {"graphs/fp32.onnx": head, "weights.bin": tiny_engine.Weights.random().to_bytes()}
    engine = write_engine(tmp_path / "x.engine", MANIFEST, entries)
    with pytest.raises(EngineCorruptError, match="addresses in memory"):
        engine.graph("fp32", "x")


# --- as a folder


def test_unpack_and_pack_are_inverse(tmp_path: Path, engine: EngineFile) -> None:
    engine = add_plans(engine.path, [(PLAN, b"plan")])
    files = engine.unpack(tmp_path / "folder")
    names = sorted(str(f.relative_to(tmp_path / "folder")) for f in files)
    assert names == ["fp32.onnx", "int8.onnx", "manifest.json", str(Path("plans/sm_89.plan")), "weights.bin"]
    assert all(f.is_file() for f in files)
    assert {t.location for t in onnx_head.tensors((tmp_path / "folder" / "fp32.onnx").read_bytes())} == {"weights.bin"}
    again = pack(tmp_path / "folder", tmp_path / "again.engine")
    assert again.id == engine.id
    assert again.read("plans/sm_89.plan") == b"plan"
    again.verify()


def test_pack_takes_edits(tmp_path: Path, engine: EngineFile) -> None:
    folder = tmp_path / "folder"
    engine.unpack(folder)
    data = json.loads((folder / "manifest.json").read_text())
    data["name"] = "edited"
    data["scores"][0]["calibration"] = {"x": [0.1, 0.9], "y": [0.0, 1.0], "dataset": "some data"}
    (folder / "manifest.json").write_text(json.dumps(data))
    (folder / "int8.onnx").unlink()
    edited = pack(folder, tmp_path / "edited.engine")
    assert edited.manifest.name == "edited"
    assert edited.manifest.scores[0] == CALIBRATED
    assert list(edited.manifest.graphs) == ["fp32"]
    assert edited.id != engine.id


def test_pack_says_what_is_missing(tmp_path: Path, engine: EngineFile) -> None:
    with pytest.raises(UsageError, match="nothing is not a folder"):
        pack(tmp_path / "nothing", tmp_path / "x.engine")
    with pytest.raises(UsageError, match=r"must hold manifest\.json and graphs"):
        pack(tmp_path, tmp_path / "x.engine")
    folder = tmp_path / "folder"
    engine.unpack(folder)
    graph = (folder / "fp32.onnx").read_bytes()
    (folder / "fp32.onnx").unlink()
    with pytest.raises(UsageError, match=r"must hold fp32\.onnx"):
        pack(folder, tmp_path / "x.engine")
    (folder / "fp32.onnx").write_bytes(graph)
    weights = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(weights[:-1])
    with pytest.raises(UsageError, match=r"does not lie in the weights\.bin"):
        pack(folder, tmp_path / "x.engine")
    (folder / "weights.bin").write_bytes(weights)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match="not a JSON object"):
        pack(folder, tmp_path / "x.engine")
    (folder / "manifest.json").write_text(engine.manifest.to_json().replace('"size": 16', '"size": 1'))
    with pytest.raises(ManifestError):
        pack(folder, tmp_path / "x.engine")
    assert not (tmp_path / "x.engine").exists()


def test_an_empty_folder_is_filled_and_stays_the_same(
    tmp_path: Path, engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a mount, or the working directory."""
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "empty").stat().st_ino
    monkeypatch.chdir(tmp_path / "empty")
    files = engine.unpack("")
    assert (tmp_path / "empty").stat().st_ino == before
    assert {f.name for f in files} == {p.name for p in Path().iterdir()}


def test_unpack_overwrites_nothing_and_leaves_no_half(tmp_path: Path, engine: EngineFile) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="not an empty folder"):
        engine.unpack(tmp_path / "full")
    opened = EngineFile.open(damage(engine, engine.offset("weights.bin")))
    with pytest.raises(EngineCorruptError):
        opened.unpack(tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.engine", "full", "tiny.engine"]


def test_the_bundled_engine_is_whole_or_its_absence_explained() -> None:
    try:
        path = bundled_engine()
    except EngineNotFoundError as error:
        assert "pip install" in str(error)  # noqa: PT017 - both outcomes are right, depending on the installation
    else:
        EngineFile.open(path).verify()
