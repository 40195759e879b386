from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import EngineError, EngineVersionError, ManifestError
from declip_runtime.manifest import PREPROCESSING_VERSION, SCHEMA, Entry, License, Manifest, Plan, Preprocess
from declip_runtime.scorer_manifest import CalibrationCurve, ScorerManifest, ScoreSpec, Validation
from declip_runtime.signature import Range

HASH = "0123456789abcdef" * 4
SCORE = ScoreSpec(
    "quality",
    "quality",
    (("Good photo.", "Bad photo."), ("Fine photo.", "Poor photo.")),
    "Technical quality",
    Validation("some data", 0.5, 100, "a note"),
    CalibrationCurve((0.1, 0.9), (0, 1), "some data"),
)
PLAN = Plan("plans/sm_89.plan", "10.3", "8.9", "fp16", HASH, Range(1, 8, 32), "RTX 4090")
FULL = ScorerManifest(
    name="full",
    preprocess=Preprocess(384),
    scores=(SCORE, ScoreSpec("brightness", "degree", (("Bright photo.", "Dark photo."),))),
    embedding_dim=8,
    logit_scale=100,
    graphs={"fp32": "graphs/fp32.onnx"},
    entries={name: Entry(3, HASH) for name in ("weights.bin", "graphs/fp32.onnx", "plans/sm_89.plan")},
    producer="a test",
    created="2026-11-26",
    license=License("Apache-2.0", "text"),
    provenance={"tower": "none", "parity": [{"largest": 1e-7}], "seeds": (1, 2), "note": None},
    plans=(PLAN,),
)


def changed(*path: str | int, to: Any) -> str:
    """The full manifest as JSON, in which somebody wrote another value at ``path``."""
    data = json.loads(FULL.to_json())
    del data["engine_id"]  # as when it is packed
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(data)


def without(*path: str | int) -> str:
    data = json.loads(changed("name", to="full"))
    place = data
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return json.dumps(data)


# --- types


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("preprocess", "size"), 384.0, r"preprocess\.size is 384\.0, wanted is a whole number"),
        (("preprocess", "size"), True, r"preprocess\.size is True, wanted is a whole number"),
        (("preprocess", "mean"), [0.5, 0.5], r"preprocess\.mean has 2 values, wanted are 3"),
        (("preprocess", "mean", 1), "0.5", r"preprocess\.mean\[1\] is '0\.5', wanted is a finite number"),
        (("preprocess", "std"), 0.5, r"preprocess\.std is 0\.5, wanted is a list"),
        (("preprocess", "interpolation"), "lanczos", "unknown interpolation 'lanczos'.*'bicubic', 'bilinear'"),
        (("preprocess", "interpolation"), ["bicubic"], "unknown interpolation"),
        (("preprocess", "resize_mode"), "squash", "unknown resize_mode 'squash'"),
        (("preprocess",), [384], r"preprocess is \[384\], wanted is an object"),
        (("name",), 5, "name is 5, wanted is text"),
        (("created",), 3, "created is 3, wanted is text"),
        (("provenance",), None, "provenance is None, wanted is an object"),
        (("has_semantic",), "yes", "has_semantic is 'yes', wanted is true or false"),
        (("has_semantic",), 1, "has_semantic is 1, wanted is true or false"),
        (("embedding_dim",), 8.0, r"embedding_dim is 8\.0, wanted is a whole number"),
        (("logit_scale",), "high", "logit_scale is 'high', wanted is a finite number"),
        (("logit_scale",), True, "logit_scale is True"),
        (("logit_scale",), 10**400, "logit_scale is 1000.*, wanted is a finite number"),
        (("logit_scale",), math.nan, "logit_scale is nan"),
        (("weights_dtype",), "int8", "unknown weights_dtype 'int8'"),
        (("kind",), 1, "unknown kind 1"),
        (("license",), {"name": 5}, r"license\.name is 5"),
        (("license",), 7, "license is 7, wanted is an object"),
        (("license",), {}, r"license\.name is missing"),
        (("scores",), {}, r"scores is \{\}, wanted is a list"),
        (("scores", 1, "description"), 5, r"scores\[1\]\.description is 5, wanted is text"),
        (("scores", 0, "kind"), None, r"unknown kind None, scores\[0\]\.kind is one of 'quality', 'degree'"),
        (("scores", 0, "pairs"), ["ab"], r"scores\[0\]\.pairs\[0\] is 'ab', wanted is a list"),
        (("scores", 0, "pairs", 0, 1), 5, r"scores\[0\]\.pairs\[0\]\[1\] is 5"),
        (("scores", 0, "validated", "n"), 1.5, r"scores\[0\]\.validated\.n is 1\.5"),
        (("scores", 0, "calibration", "x", 0), math.inf, r"scores\[0\]\.calibration\.x\[0\] is inf"),
        (("scores", 0, "calibration", "dataset"), 5, r"scores\[0\]\.calibration\.dataset is 5"),
        (("graphs", "fp32"), 1, r"graphs\.fp32 is 1, wanted is text"),
        (("entries", "weights.bin"), 3, r"entries\.weights\.bin is 3, wanted is an object"),
        (("entries", "weights.bin", "size"), "3", r"entries\.weights\.bin\.size is '3'"),
        (("plans",), {"a": 1}, "plans is .*, wanted is a list"),
        (("plans", 0, "tensorrt"), 10.3, r"plans\[0\]\.tensorrt is 10\.3, wanted is text"),
        (("plans", 0, "profile"), 8, r"plans\[0\]\.profile is 8, wanted is a list"),
        (("plans", 0, "profile"), [1, 8], r"plans\[0\]\.profile has 2 values, wanted are 3"),
        (("plans", 0, "profile", 1), 8.0, r"plans\[0\]\.profile\[1\] is 8\.0, wanted is a whole number"),
        (("plans", 0, "hardware_compatible"), None, r"plans\[0\]\.hardware_compatible is None"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=rf"not valid: {message}.*\. Export the engine again\."):
        Manifest.from_json(changed(*path, to=value))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("name",), "name is missing"),
        (("preprocess", "size"), r"preprocess\.size is missing"),
        (("scores", 1, "pairs"), r"scores\[1\]\.pairs is missing"),
        (("plans", 0, "profile"), r"plans\[0\]\.profile is missing"),
    ],
)
def test_a_missing_field_is_named(path: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ManifestError, match=f"not valid: {message}"):
        Manifest.from_json(without(*path))


def test_types_are_checked_wherever_a_description_is_made() -> None:
    wrong: Any
    for wrong in (384.0, np.int64(384), "384", None):
        with pytest.raises(ManifestError, match=r"Preprocess\.size is "):
            Preprocess(wrong)
    for make in (
        lambda v: License(v),
        lambda v: Entry(3, v),
        lambda v: replace(SCORE, description=v),
        lambda v: replace(PLAN, device_name=v),
        lambda v: replace(FULL, name=v),
        lambda v: replace(FULL, graphs={"fp32": v}),
        lambda v: replace(FULL, graphs={v: "graphs/fp32.onnx"}),
    ):
        with pytest.raises(ManifestError, match="is 5, wanted is text"):
            make(5)
    for other in ([SCORE, "quality"], {"quality": SCORE}, SCORE):
        with pytest.raises(ManifestError, match=r"Manifest\.scores"):
            replace(FULL, scores=other)  # type: ignore[arg-type]


def test_lists_become_tuples_so_that_nobody_changes_them_afterwards() -> None:
    scores, provenance = [SCORE], {"tower": "none"}
    manifest = replace(FULL, scores=scores, provenance=provenance)  # type: ignore[arg-type]
    scores.clear()
    provenance.clear()
    assert manifest.scores == (SCORE,)
    assert manifest.provenance == {"tower": "none"}
    assert replace(PLAN, profile=[1, 8, 32]).profile.maximum == 32  # type: ignore[arg-type]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a JSON document."""
    steps: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for step in steps:
        yield (*path, step)
        yield from places(value[step], (*path, step))


def test_whatever_stands_anywhere_is_a_manifest_that_can_be_trusted_or_an_engine_error() -> None:
    values: list[Any] = [None, True, -1, 0, 7, 1.5, math.nan, 10**400, "", "x", "\ud800", [], ["x"], [[]], {}, {"x": 1}]
    accepted = 0
    for path in places(json.loads(FULL.to_json())):
        for value in values:
            try:
                manifest = Manifest.from_json(changed(*path, to=value))
            except EngineError:
                continue
            accepted += 1
            assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()
            assert hash(manifest.scores) == hash(copy.deepcopy(manifest.scores))
            assert len(manifest.engine_id) == 64
    assert accepted > 50  # texts and numbers that may be so


@pytest.mark.parametrize("value", [math.nan, {"a": math.inf}, [1, {"a": "\ud800"}], np.float32(1), {1, 2}])
def test_provenance_is_free_as_long_as_it_can_be_written(value: Any) -> None:
    with pytest.raises(ManifestError, match="cannot be written as JSON"):
        replace(FULL, provenance={"tower": value})


# --- the JSON form


def test_what_was_written_is_read() -> None:
    text = FULL.to_json()
    read = Manifest.from_json(text)
    assert read == replace(FULL, provenance={**FULL.provenance, "seeds": [1, 2]})  # JSON has no tuples
    assert read.to_json() == text
    assert isinstance(read.plans[0].profile, Range)


def test_numbers_keep_their_form_because_the_id_depends_on_it() -> None:
    data = json.loads(FULL.to_json())
    assert repr(data["logit_scale"]) == "100"
    assert data["scores"][0]["calibration"]["y"] == [0, 1]
    assert FULL.engine_id != replace(FULL, logit_scale=100.0).engine_id
    assert Manifest.from_json(FULL.to_json()).engine_id == FULL.engine_id


def test_the_bundled_engine_is_read_as_it_was_written() -> None:
    engine = EngineFile.open(bundled_engine())
    assert Manifest.from_json(engine.manifest.to_json()) == engine.manifest


def test_fields_of_a_later_sdk_with_the_same_schema_are_passed_over() -> None:
    for path in (("colour",), ("preprocess", "colour"), ("scores", 0, "colour"), ("plans", 0, "colour")):
        assert Manifest.from_json(changed(*path, to={"any": "thing"})) == Manifest.from_json(FULL.to_json())


# --- versions

VERSIONS = {("schema",): SCHEMA, ("preprocess", "version"): PREPROCESSING_VERSION}


@pytest.mark.parametrize("path", list(VERSIONS))
def test_a_newer_version_asks_for_a_newer_sdk(path: tuple[str, ...]) -> None:
    newer = VERSIONS[path] + 1
    with pytest.raises(EngineVersionError, match=rf"{path[-1]} {newer}, .*up to {newer - 1}\. Run: pip install -U"):
        Manifest.from_json(changed(*path, to=newer))


def test_a_newer_version_is_noticed_before_what_it_may_have_changed() -> None:
    newer = {"version": PREPROCESSING_VERSION + 1, "size": [384, 256], "interpolation": "lanczos"}
    with pytest.raises(EngineVersionError):
        Manifest.from_json(changed("preprocess", to=newer))


@pytest.mark.parametrize("path", list(VERSIONS))
@pytest.mark.parametrize("version", [0, -1, True, False, 1.0, "1", None, [1]])
def test_a_version_that_never_was_is_refused(path: tuple[str, ...], version: Any) -> None:
    with pytest.raises(ManifestError, match=rf"{path[-1]} is .*, wanted is a whole number from 1 on"):
        Manifest.from_json(changed(*path, to=version))


def test_versions_are_checked_wherever_a_description_is_made() -> None:
    with pytest.raises(EngineVersionError):
        Preprocess(384, version=PREPROCESSING_VERSION + 1)
    with pytest.raises(EngineVersionError):
        replace(FULL, schema=SCHEMA + 1)
    with pytest.raises(ManifestError):
        replace(FULL, schema=0)
    with pytest.raises(ManifestError):
        Manifest.from_json(without("schema"))
