"""info, verify, unpack, pack and cache, on copies of the tiny engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from declip_runtime.backends import REGISTRY
from declip_runtime.engine_file import EngineFile
from declip_sdk import Scorer
from declip_sdk.cli import run

from .command import TINY


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return Path(shutil.copy(TINY, tmp_path / "copy.engine"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "declip"


def test_info_tells_what_the_engine_scores_and_what_runs_it(engine: Path, cache: Path, capfd: Any) -> None:
    assert run(["info", str(engine)]) == 0
    text = capfd.readouterr().out
    file = EngineFile.open(engine)
    assert file.manifest.name in text
    assert file.id in text
    lines = text.splitlines()
    for spec in file.manifest.scores:
        (line,) = (line for line in lines if line.split()[:1] == [spec.name])
        assert ("not validated" in line) == (spec.validated is None)
        assert ("higher is better" in line) == (spec.kind == "quality")
        assert all(f"{positive} / {negative}" in text for positive, negative in spec.pairs)
    assert all(any(line.split()[:1] == [name] for line in lines) for name in REGISTRY)
    assert not any(cache.glob("*")), "nothing is compiled for a page of facts"
    with Scorer(engine) as scorer:
        assert f"chosen here: {scorer.backend} · {scorer.device} · {scorer.precision}" in text
    (fake,) = (line for line in lines if line.split()[:1] == ["fake"])
    assert "made for tests" in fake
    assert "ready" not in fake


def test_info_for_programs(engine: Path, cache: Path, capfd: Any) -> None:
    assert run(["info", str(engine), "--format", "json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["manifest"]["engine_id"] == EngineFile.open(engine).id
    assert document["bytes"] == engine.stat().st_size
    assert set(document["backends"]) == set(REGISTRY)
    assert document["backends"]["fake"] is not None
    assert set(document["chosen"]) == {"backend", "device", "precision"}


def test_info_prints_the_licence(engine: Path, capfd: Any) -> None:
    licence = EngineFile.open(engine).manifest.license
    assert run(["info", "--license", str(engine)]) == 0
    out = capfd.readouterr().out
    assert (licence.name in out and licence.text in out) if licence else "no licence" in out


def test_info_says_where_there_is_no_card(engine: Path, capfd: Any) -> None:
    assert run(["info", "--card", str(engine)]) == 0
    assert capfd.readouterr().out == "the engine has no model card\n"


def test_info_prints_the_bundled_card_and_points_at_it(cache: Path, capfd: Any) -> None:
    assert run(["info", "--card"]) == 0
    card = capfd.readouterr().out
    assert all(f"\n## {part}\n" in card for part in ("Data", "Recipe", "Agreement with people", "Limits", "Bias"))
    assert run(["info"]) == 0
    assert "--card" in capfd.readouterr().out


def test_verify_finds_a_flipped_bit(engine: Path, capfd: Any) -> None:
    assert run(["verify", str(engine)]) == 0
    assert "intact" in capfd.readouterr().out
    data = bytearray(engine.read_bytes())
    data[EngineFile.open(engine).offset("weights.bin") + 1000] ^= 1
    engine.write_bytes(data)
    assert run(["verify", str(engine)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("declip: weights.bin")


@pytest.mark.parametrize("verb", ["info", "verify", "unpack"])
def test_what_is_not_an_engine_is_named(verb: str, tmp_path: Path, capfd: Any) -> None:
    bare = tmp_path / "model.onnx"
    bare.write_bytes(b"\x08\x07")
    assert run([verb, str(bare)]) == 2
    assert "declip pack" in capfd.readouterr().err
    assert run([verb, str(tmp_path / "none.engine")]) == 2
    assert capfd.readouterr().err.startswith("declip: there is no engine")


def test_unpacked_and_packed_again_it_is_the_same_engine(engine: Path, tmp_path: Path, capfd: Any) -> None:
    folder = tmp_path / "folder"
    assert run(["unpack", str(engine), "-o", str(folder)]) == 0
    listed = [Path(line) for line in capfd.readouterr().out.splitlines()]
    assert all(path.is_file() for path in listed)
    assert {"manifest.json", "fp32.onnx", "weights.bin"} <= {path.name for path in listed}
    assert run(["pack", str(folder), "-o", str(tmp_path / "again.engine")]) == 0
    assert EngineFile.open(tmp_path / "again.engine").id == EngineFile.open(engine).id
    weights = (folder / "weights.bin").read_bytes()
    assert run(["pack", str(folder), "-o", str(folder / "weights.bin")]) == 2
    assert "weights.bin is read here and will not be overwritten" in capfd.readouterr().err
    assert (folder / "weights.bin").read_bytes() == weights


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"size": 32,', '"size": 32.0,', "preprocess.size is 32.0"),
        ('"name": "declip-tiny"', '"name": 5', "name is 5"),
        ('"provenance": {', '"provenance": null, "was": {', "provenance is None"),
        ('"version": 1', '"version": 2', "pip install -U declip-sdk"),
    ],
)
def test_a_manifest_that_was_edited_wrongly_is_refused_when_it_is_packed(
    old: str, new: str, named: str, engine: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / "folder"
    EngineFile.open(engine).unpack(folder)
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (folder / "manifest.json").write_text(text.replace(old, new), encoding="utf-8")
    assert run(["pack", str(folder), "-o", str(tmp_path / "again.engine")]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"declip: {folder / 'manifest.json'}: ")
    assert named in error
    assert not (tmp_path / "again.engine").exists()


def test_the_default_folder_of_unpack_is_the_engines_name(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["unpack", str(engine)]) == 0
    assert (tmp_path / "copy" / "fp32.onnx").is_file()
    assert run(["unpack", str(engine)]) == 2  # never on top of something


@pytest.mark.parametrize("verb", ["score", "benchmark", "coop"])
def test_help_does_not_call_the_threads_a_budget(verb: str, capfd: Any) -> None:
    assert run([verb, "--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "Threads that decode, and as many that compute" in text
    assert "budget" not in text


def test_the_cache_is_listed_and_cleared(engine: Path, cache: Path, capfd: Any) -> None:
    Scorer(engine, backend="openvino").close()
    assert run(["cache", "path"]) == 0
    assert capfd.readouterr().out == f"{cache}\n"
    assert run(["cache", "list"]) == 0
    out = capfd.readouterr().out
    assert EngineFile.open(engine).id[:12] in out
    assert "in 1 model\n" in out
    assert run(["cache", "clear"]) == 0
    assert "MB freed" in capfd.readouterr().out
    assert run(["cache", "list", "--folder", str(cache)]) == 0
    assert "in 0 models" in capfd.readouterr().out


def test_the_cache_alone_lists_its_sub_commands(capfd: Any) -> None:
    assert run(["cache"]) == 2
    assert "clear" in capfd.readouterr().out
