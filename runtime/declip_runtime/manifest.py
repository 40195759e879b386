"""What an engine says of itself: frozen, self-validating, vendor-neutral.

A manifest is plain data. Reading one checks everything that can be checked without the engine's other entries, so
whoever holds a ``Manifest`` may trust it. The JSON form is what ``declip info --format json`` prints.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from .errors import EngineVersionError, ManifestError, NotAnEngineError

FORMAT = "declip-engine"
SCHEMA = 1
PREPROCESSING_VERSION = 1

# A score is read as an attribute and as a column, so it cannot be called what Score and Scores call their own.
RESERVED_NAMES = frozenset(
    {"names", "errors", "embeddings", "image", "images", "index", "values", "error", "embedding"}
    | {"to_dict", "to_dicts", "to_pandas"}
)
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

ScoreKind = Literal["quality", "degree"]
GRAPH_NAMES = ("fp32", "fp16", "int8", "int8-fp16", "fp8")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ManifestError(f"the engine's manifest is not valid: {message}. Export the engine again.")


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the tower's input, exactly as open_clip's evaluation transform does it.

    The shorter side is resized to ``size`` with Pillow's antialiased filter, then the centre square is cut out.
    ``mean`` and ``std`` (RGB, of pixels in 0..1) are applied inside the graph and stand here for information.
    """

    size: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest"] = "shortest"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    version: int = PREPROCESSING_VERSION

    def __post_init__(self) -> None:
        _require(16 <= self.size <= 4096, f"preprocess.size is {self.size}, allowed are 16..4096")
        _require(self.interpolation in ("bicubic", "bilinear"), f"unknown interpolation {self.interpolation!r}")
        _require(self.resize_mode == "shortest", f"unknown resize_mode {self.resize_mode!r}")
        _require(len(self.mean) == 3 and len(self.std) == 3 and min(self.std) > 0, "mean and std need three values")


@dataclass(frozen=True)
class Validation:
    """What a score was compared with, and how well it agreed (``srcc`` in -1..1, ``n`` images).

    ``dataset`` is one of people's opinions, or says that it holds none: ladders of known strength, for attributes.
    """

    dataset: str
    srcc: float
    n: int
    note: str = ""

    def __post_init__(self) -> None:
        _require(-1.0 <= self.srcc <= 1.0 and self.n > 0, f"validation on {self.dataset!r} is out of range")


@dataclass(frozen=True)
class CalibrationCurve:
    """Monotone, piecewise linear map from the raw score to the 0..1 that users see; constant beyond its ends.

    ``x`` strictly increasing raw scores, ``y`` non-decreasing values in 0..1, ``dataset`` what it was fitted on.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    dataset: str

    def __post_init__(self) -> None:
        _require(len(self.x) == len(self.y) >= 2, "a calibration curve needs at least two points")
        _require(all(a < b for a, b in zip(self.x, self.x[1:], strict=False)), "calibration x must increase")
        _require(all(a <= b for a, b in zip(self.y, self.y[1:], strict=False)), "calibration y must not decrease")
        _require(all(map(math.isfinite, self.x)), "calibration x must be finite")
        _require(all(0.0 <= v <= 1.0 for v in self.y), "calibration y must lie in 0..1")


@dataclass(frozen=True)
class ScoreSpec:
    """One named score: the mean over its antonym pairs of eq. 8, ``kind`` says what more of it means.

    ``validated`` is None where nobody compared the score with anything; ``calibration`` None leaves it raw.
    """

    name: str
    kind: ScoreKind
    pairs: tuple[tuple[str, str], ...]
    description: str = ""
    validated: Validation | None = None
    calibration: CalibrationCurve | None = None

    def __post_init__(self) -> None:
        _require(bool(_NAME.match(self.name)), f"score name {self.name!r} is not a lower-case identifier")
        _require(self.name not in RESERVED_NAMES, f"score name {self.name!r} is reserved")
        _require(self.kind in ("quality", "degree"), f"score {self.name!r} has unknown kind {self.kind!r}")
        _require(len(self.pairs) >= 1, f"score {self.name!r} has no antonym pair")
        _require(all(len(p) == 2 and all(p) for p in self.pairs), f"score {self.name!r} has an incomplete pair")


@dataclass(frozen=True)
class Entry:
    """Size in bytes and SHA-256 (hex) of one file inside the container."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        _require(self.size >= 0 and bool(_SHA256.match(self.sha256)), "an entry's size or hash is malformed")


class BatchProfile(NamedTuple):
    """Batch sizes of a TensorRT plan: the smallest and largest that it takes, and the one that it is tuned for."""

    minimum: int
    optimum: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.minimum}..{self.maximum}, tuned for {self.optimum}"


@dataclass(frozen=True)
class Plan:
    """A TensorRT plan built for one kind of device.

    ``entry`` is where its bytes lie in the engine, ``tensorrt`` the version that built it, ``compute_capability`` and
    ``device_name`` the GPU it was built on, ``graph_sha256`` that of the graph entry it was built from.
    ``version_compatible``: later releases of the same major version run it. ``hardware_compatible``: every GPU from
    Ampere on runs it.
    """

    entry: str
    tensorrt: str
    compute_capability: str
    precision: str
    graph_sha256: str
    profile: BatchProfile
    device_name: str = ""
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        low, best, high = self.profile
        _require(1 <= low <= best <= high, f"plan {self.entry!r} has the profile {list(self.profile)}")


@dataclass(frozen=True)
class License:
    """The licence of the weights: an SPDX identifier or name, and its full text."""

    name: str
    text: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything an engine says of itself.

    ``graphs`` maps a graph name (``fp32``, ``fp16``, ``int8``, ``int8-fp16``, ``fp8``) to its entry; each graph takes
    ``images`` uint8 [B, H, W, 3] and gives ``scores`` float32 [B, K] raw, in the order of ``scores``, and
    ``perceptual`` float32 [B, embedding_dim], L2-normalised (and ``semantic`` likewise where ``has_semantic``).
    ``weights_dtype`` is how weights.bin stores floating-point weights. ``provenance`` is free-form: tower, data, commit, parity table.
    """

    name: str
    preprocess: Preprocess
    scores: tuple[ScoreSpec, ...]
    embedding_dim: int
    logit_scale: float
    graphs: Mapping[str, str]
    entries: Mapping[str, Entry] = field(default_factory=dict)
    kind: Literal["scorer"] = "scorer"
    has_semantic: bool = False
    weights_dtype: Literal["float16", "float32"] = "float16"
    producer: str = ""
    created: str = ""
    license: License | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    plans: tuple[Plan, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _require(bool(self.name), "the engine has no name")
        _require(self.kind == "scorer", f"unknown kind {self.kind!r}")
        names = [s.name for s in self.scores]
        _require(len(names) >= 1, "the engine has no score")
        _require(len(set(names)) == len(names), "two scores share a name")
        _require(self.embedding_dim >= 1, "embedding_dim must be positive")
        _require(math.isfinite(self.logit_scale) and self.logit_scale > 0, "logit_scale must be positive")
        _require("fp32" in self.graphs, "the fp32 graph is missing")
        unknown = set(self.graphs) - set(GRAPH_NAMES)
        _require(not unknown, f"unknown graphs {sorted(unknown)}")
        missing = [g for g in (*self.graphs.values(), *(p.entry for p in self.plans)) if g not in self.entries]
        _require(not self.entries or not missing, f"no hash for {missing}")
        _require(self.weights_dtype in ("float16", "float32"), f"unknown weights_dtype {self.weights_dtype!r}")

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores in the order of the graph's columns."""
        return tuple(s.name for s in self.scores)

    @property
    def engine_id(self) -> str:
        """Hex SHA-256 over graphs, weights and everything that decides a score.

        Name, licence, provenance, validation notes and plans do not take part: adding a plan or correcting a text
        changes nothing that was scored.
        """
        scored = {n: e.sha256 for n, e in sorted(self.entries.items()) if not n.startswith("plans/")}
        spec = {
            "entries": scored,
            "preprocess": asdict(self.preprocess),
            "logit_scale": self.logit_scale,
            "scores": [
                {"name": s.name, "kind": s.kind, "calibration": asdict(s.calibration) if s.calibration else None}
                for s in self.scores
            ],
        }
        return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form, with ``format`` and the derived ``engine_id``."""
        data = asdict(self)
        return {"format": FORMAT, "engine_id": self.engine_id, **data}

    def to_json(self) -> str:
        """Indented UTF-8 JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Parse and validate.

        Raises NotAnEngineError for other JSON, EngineVersionError for a newer schema, ManifestError for the rest.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError("the engine's manifest is not JSON. Export the engine again.") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise NotAnEngineError(
                "manifest.json is not the manifest of a DeCLIP engine. `declip unpack` of an engine shows the form."
            )
        schema = data.get("schema")
        if not isinstance(schema, int):
            raise ManifestError("the engine's manifest has no schema number. Export the engine again.")
        if schema > SCHEMA:
            raise EngineVersionError(
                f"this engine uses schema {schema}, this SDK reads up to {SCHEMA}. Run: pip install -U declip-sdk"
            )
        stated = data.get("engine_id")
        try:
            manifest = _manifest_from(data)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ManifestError(
                f"the engine's manifest is not valid: {type(error).__name__} {error}. Export the engine again."
            ) from error
        _require(stated in (None, manifest.engine_id), "engine_id does not match the content")
        return manifest


def _pick(cls: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Known fields only: a later minor version may add some, as long as the schema stays."""
    known = {f.name for f in fields(cls)}
    return {k: v for k, v in data.items() if k in known}


def _score_from(data: Mapping[str, Any]) -> ScoreSpec:
    values = _pick(ScoreSpec, data)
    values["pairs"] = tuple((str(p), str(n)) for p, n in data["pairs"])
    if data.get("validated"):
        values["validated"] = Validation(**_pick(Validation, data["validated"]))
    if data.get("calibration"):
        curve = data["calibration"]
        values["calibration"] = CalibrationCurve(tuple(curve["x"]), tuple(curve["y"]), str(curve["dataset"]))
    return ScoreSpec(**values)


def _manifest_from(data: Mapping[str, Any]) -> Manifest:
    values = _pick(Manifest, data)
    pre = _pick(Preprocess, data["preprocess"])
    for key in ("mean", "std"):
        if key in pre:
            pre[key] = tuple(pre[key])
    values["preprocess"] = Preprocess(**pre)
    values["scores"] = tuple(_score_from(s) for s in data["scores"])
    values["entries"] = {str(n): Entry(**_pick(Entry, e)) for n, e in data["entries"].items()}
    plans = (_pick(Plan, p) for p in data.get("plans", ()))
    values["plans"] = tuple(Plan(**{**p, "profile": BatchProfile(*p["profile"])}) for p in plans)
    if data.get("license"):
        values["license"] = License(**_pick(License, data["license"]))
    return Manifest(**values)
