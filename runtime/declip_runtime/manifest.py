"""What an engine says of itself: frozen, self-validating, vendor-neutral.

A manifest is plain data. Making one, from JSON or not, checks everything that can be checked without the engine's
other entries, the type of every field first, so whoever holds a ``Manifest`` may trust it. The JSON form is what
``declip info --format json`` prints.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from .errors import EngineVersionError, ManifestError, NotAnEngineError

FORMAT = "declip-engine"
SCHEMA = 1
PREPROCESSING_VERSION = 1

# A score is read as an attribute and as a column, so it cannot be called what Score and Scores call their own.
RESERVED_NAMES = frozenset(
    {"names", "errors", "embeddings", "image", "images", "index", "values", "error", "embedding"}
    | {"to_dict", "to_dicts", "to_pandas", "scored_with"}
)
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

ScoreKind = Literal["quality", "degree"]
GRAPH_NAMES = ("fp32", "fp16", "int8", "int8-fp16", "fp8")


def _not_valid(message: str) -> ManifestError:
    return ManifestError(f"the engine's manifest is not valid: {message}. Export the engine again.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _not_valid(message)


def _require_version(where: str, value: Any, newest: int) -> None:
    if not _is_plain(value, int) or value < 1:
        raise _of_another_type(where, value, "a whole number from 1 on")
    if value > newest:
        raise EngineVersionError(
            f"this engine uses {where} {value}, this SDK reads up to {newest}. Run: pip install -U declip-sdk"
        )


class _Typed:
    """Base of the descriptions: a field of a type that its hint does not allow is refused, however one was made."""

    def __post_init__(self) -> None:
        cls: Any = type(self)  # mypy takes a bare class for unhashable
        for name, hint in _hints(cls).items():
            object.__setattr__(self, name, _typed(getattr(self, name), hint, f"{cls.__name__}.{name}"))


@dataclass(frozen=True)
class Preprocess(_Typed):
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
        super().__post_init__()
        _require_version("preprocess.version", self.version, PREPROCESSING_VERSION)
        _require(16 <= self.size <= 4096, f"preprocess.size is {self.size}, allowed are 16..4096")
        _require(min(self.std) > 0, "preprocess.std must be positive")


@dataclass(frozen=True)
class Validation(_Typed):
    """What a score was compared with, and how well it agreed (``srcc`` in -1..1, ``n`` images).

    ``dataset`` is one of people's opinions, or says that it holds none: ladders of known strength, for attributes.
    """

    dataset: str
    srcc: float
    n: int
    note: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(-1.0 <= self.srcc <= 1.0 and self.n > 0, f"validation on {self.dataset!r} is out of range")


@dataclass(frozen=True)
class CalibrationCurve(_Typed):
    """Monotone, piecewise linear map from the raw score to the 0..1 that users see; constant beyond its ends.

    ``x`` strictly increasing raw scores, ``y`` non-decreasing values in 0..1, ``dataset`` what it was fitted on.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    dataset: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(len(self.x) == len(self.y) >= 2, "a calibration curve needs at least two points")
        _require(all(a < b for a, b in zip(self.x, self.x[1:], strict=False)), "calibration x must increase")
        _require(all(a <= b for a, b in zip(self.y, self.y[1:], strict=False)), "calibration y must not decrease")
        _require(all(0.0 <= v <= 1.0 for v in self.y), "calibration y must lie in 0..1")


@dataclass(frozen=True)
class ScoreSpec(_Typed):
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
        super().__post_init__()
        _require(bool(_NAME.match(self.name)), f"score name {self.name!r} is not a lower-case identifier")
        _require(self.name not in RESERVED_NAMES, f"score name {self.name!r} is reserved")
        _require(len(self.pairs) >= 1, f"score {self.name!r} has no antonym pair")
        _require(all(all(pair) for pair in self.pairs), f"score {self.name!r} has an incomplete pair")


@dataclass(frozen=True)
class Entry(_Typed):
    """Size in bytes and SHA-256 (hex) of one file inside the container."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.size >= 0 and bool(_SHA256.match(self.sha256)), "an entry's size or hash is malformed")


class BatchProfile(NamedTuple):
    """Batch sizes of a TensorRT plan: the smallest and largest that it takes, and the one that it is tuned for."""

    minimum: int
    optimum: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.minimum}..{self.maximum}, tuned for {self.optimum}"


@dataclass(frozen=True)
class Plan(_Typed):
    """A TensorRT plan built for one kind of device.

    ``entry`` is where its bytes lie in the engine, ``tensorrt`` the version that built it, ``platform`` (as
    linux-x86_64), ``compute_capability``, ``device_name`` and ``multiprocessors`` the machine and GPU it was built on,
    ``graph_sha256`` a hash over the graph and the weights that it was built from. ``version_compatible``: later
    releases of the same major version run it, unless it was built ``without_lean``, the runtime that they would need
    for it. ``hardware_compatible``: every GPU from Ampere on runs it.
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
    without_lean: bool = False
    platform: str = ""
    multiprocessors: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, best, high = self.profile
        _require(1 <= low <= best <= high, f"plan {self.entry!r} has the profile {list(self.profile)}")


@dataclass(frozen=True)
class License(_Typed):
    """The licence of the weights: an SPDX identifier or name, and its full text."""

    name: str
    text: str = ""


@dataclass(frozen=True)
class Manifest(_Typed):
    """Everything an engine says of itself.

    ``graphs`` maps a graph name (``fp32``, ``fp16``, ``int8``, ``int8-fp16``, ``fp8``) to its entry; each graph takes
    ``images`` uint8 [B, H, W, 3] and gives ``scores`` float32 [B, K] raw, in the order of ``scores``, and
    ``perceptual`` float32 [B, embedding_dim], L2-normalised (and ``semantic`` likewise where ``has_semantic``).
    ``weights_dtype`` is how weights.bin stores floating-point weights. ``provenance`` is free-form: tower, data,
    commit, parity table.
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
        super().__post_init__()
        _require_version("schema", self.schema, SCHEMA)
        _require(bool(self.name), "the engine has no name")
        names = [s.name for s in self.scores]
        _require(len(names) >= 1, "the engine has no score")
        _require(len(set(names)) == len(names), "two scores share a name")
        _require(self.embedding_dim >= 1, "embedding_dim must be positive")
        _require(self.logit_scale > 0, "logit_scale must be positive")
        _require("fp32" in self.graphs, "the fp32 graph is missing")
        unknown = set(self.graphs) - set(GRAPH_NAMES)
        _require(not unknown, f"unknown graphs {sorted(unknown)}")
        missing = [g for g in (*self.graphs.values(), *(p.entry for p in self.plans)) if g not in self.entries]
        _require(not self.entries or not missing, f"no hash for {missing}")
        try:  # provenance may hold anything, and any text may hold half a character
            json.dumps(asdict(self), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise _not_valid(f"it cannot be written as JSON ({error})") from error

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
        """Parse and validate; what a later SDK may have added to the same schema is passed over.

        Raises NotAnEngineError for other JSON, EngineVersionError for a newer schema or preprocessing, ManifestError
        for the rest.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError("the engine's manifest is not JSON. Export the engine again.") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise NotAnEngineError(
                "manifest.json is not the manifest of a DeCLIP engine. `declip unpack` of an engine shows the form."
            )
        _require_version("schema", data.get("schema"), SCHEMA)
        preprocess = data.get("preprocess")
        if isinstance(preprocess, Mapping) and "version" in preprocess:  # first: a newer one may differ in the rest
            _require_version("preprocess.version", preprocess["version"], PREPROCESSING_VERSION)
        manifest: Manifest = _typed(data, cls, "")
        stated = data.get("engine_id")
        _require(stated in (None, manifest.engine_id), "engine_id does not match the content")
        return manifest


_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` in the form of the type hint: JSON's lists become tuples, its objects descriptions.

    Knows the kinds of hints that stand above. Raises ManifestError naming ``where`` for what the hint does not allow.
    """
    if hint in _WORDS:
        if not _is_plain(value, hint):
            raise _of_another_type(where, value, _WORDS[hint])
        return value
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return value
    if kind in (Union, UnionType):  # X | None
        return None if value is None else _typed(value, parts[0], where)
    if kind is Literal:
        if not isinstance(value, str) or value not in parts:
            what = f"unknown {where.rpartition('.')[2]} {reprlib.repr(value)}"
            raise _not_valid(f"{what}, {where} is one of {', '.join(map(repr, parts))}")
        return value
    if kind is tuple:
        return tuple(_typed_items(value, parts, where))
    if kind is BatchProfile:
        return BatchProfile(*_typed_items(value, tuple(_hints(kind).values()), where))
    if kind is Mapping:
        if not isinstance(value, Mapping):
            raise _of_another_type(where, value, "an object")
        return {_typed(k, parts[0], f"a key of {where}"): _typed(v, parts[1], f"{where}.{k}") for k, v in value.items()}
    return value if isinstance(value, kind) else _typed_fields(value, kind, where)


def _typed_items(value: Any, hints: tuple[Any, ...], where: str) -> list[Any]:
    """The items of a list or tuple; ``hints`` is one for each, or one for all and an Ellipsis."""
    if not isinstance(value, list | tuple):
        raise _of_another_type(where, value, "a list")
    each = hints[:1] * len(value) if hints[-1] is Ellipsis else hints
    _require(len(value) == len(each), f"{where} has {len(value)} values, wanted are {len(each)}")
    return [_typed(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, each, strict=True))]


def _typed_fields(value: Any, cls: Any, where: str) -> Any:
    """A description from the fields that this version knows: a later one may add some, as long as the schema stays."""
    if not isinstance(value, Mapping):
        raise _of_another_type(where, value, "an object")
    hints = _hints(cls)
    places = {name: f"{where}.{name}".removeprefix(".") for name in hints}
    for f in fields(cls):
        optional = f.default is not MISSING or f.default_factory is not MISSING
        _require(optional or f.name in value, f"{places[f.name]} is missing")
    return cls(**{name: _typed(value[name], hint, places[name]) for name, hint in hints.items() if name in value})


def _is_plain(value: Any, kind: type[Any]) -> bool:
    """Whether ``value`` is a str, a bool, an int that is no bool, or a finite number, as ``kind`` asks for."""
    if isinstance(value, bool) or kind is not float:
        return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _of_another_type(where: str, value: Any, wanted: str) -> ManifestError:
    return _not_valid(f"{where} is {reprlib.repr(value)}, wanted is {wanted}")
