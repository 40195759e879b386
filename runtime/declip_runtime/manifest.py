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
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .errors import ManifestError, NotAnEngineError
from .signature import Range, Signature
from .typed_fields import Typed, not_valid, require, require_version, typed

FORMAT = "declip-engine"
SCHEMA = 1
PREPROCESSING_VERSION = 1

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

GRAPH_KINDS = ("fp32", "fp16", "int8", "int8-fp16", "fp8")


@dataclass(frozen=True)
class Preprocess(Typed):
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
        require_version("preprocess.version", self.version, PREPROCESSING_VERSION)
        require(16 <= self.size <= 4096, f"preprocess.size is {self.size}, allowed are 16..4096")
        require(min(self.std) > 0, "preprocess.std must be positive")


@dataclass(frozen=True)
class Entry(Typed):
    """Size in bytes and SHA-256 (hex) of one file inside the container."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 0 and bool(_SHA256.match(self.sha256)), "an entry's size or hash is malformed")


@dataclass(frozen=True)
class Plan(Typed):
    """A TensorRT plan built for one kind of device.

    ``entry`` is where its bytes lie in the engine, ``tensorrt`` the version that built it, ``platform`` (as
    linux-x86_64), ``compute_capability``, ``device_name`` and ``multiprocessors`` the machine and GPU it was built on,
    ``graph_sha256`` a hash over the graph and the weights that it was built from, ``component`` whose graph that was
    (empty in a scorer). ``profile`` are its batch sizes, ``sizes`` those of other free dimensions.
    ``version_compatible``: later releases of the same major version run it, unless it was built ``without_lean``, the
    runtime that they would need for it. ``hardware_compatible``: every GPU from Ampere on runs it.
    """

    entry: str
    tensorrt: str
    compute_capability: str
    precision: str
    graph_sha256: str
    profile: Range
    device_name: str = ""
    version_compatible: bool = False
    hardware_compatible: bool = False
    without_lean: bool = False
    platform: str = ""
    multiprocessors: int = 0
    component: str = ""
    sizes: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for low, best, high in (self.profile, *self.sizes.values()):
            require(1 <= low <= best <= high, f"plan {self.entry!r} has the profile {[low, best, high]}")

    @property
    def ranges(self) -> str:
        """The sizes that it takes, as people read them."""
        return "; ".join([f"batches {self.profile}", *(f"{name} {sizes}" for name, sizes in self.sizes.items())])


@dataclass(frozen=True)
class License(Typed):
    """The licence of the weights: an SPDX identifier or name, and its full text."""

    name: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest(Typed, ABC):
    """Everything that an engine of any kind says of itself; ``from_json`` gives the class that its ``kind`` asks for.

    ``graphs`` maps a graph's name to its entry. ``weights_dtype`` is how weights.bin stores floating-point weights.
    ``provenance`` is free-form: tower, data, commit, parity table.
    """

    name: str
    graphs: Mapping[str, str]
    entries: Mapping[str, Entry] = field(default_factory=dict)
    weights_dtype: Literal["float16", "float32"] = "float16"
    producer: str = ""
    created: str = ""
    license: License | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    plans: tuple[Plan, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        super().__post_init__()
        require_version("schema", self.schema, SCHEMA)
        require(bool(self.name), "the engine has no name")
        self._check()
        for component in self.signatures:
            name = self.graph_name(component, "fp32")
            require(name in self.graphs, f"the {name} graph is missing")
        known = {self.graph_name(component, kind) for component in self.signatures for kind in GRAPH_KINDS}
        unknown = set(self.graphs) - known
        require(not unknown, f"unknown graphs {sorted(unknown)}")
        named = (*self.graphs.values(), *self.files, *(p.entry for p in self.plans))
        missing = [entry for entry in named if entry not in self.entries]
        require(not self.entries or not missing, f"no hash for {missing}")
        try:  # provenance may hold anything, and any text may hold half a character
            json.dumps(asdict(self), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise not_valid(f"it cannot be written as JSON ({error})") from error

    @abstractmethod
    def _check(self) -> None:
        """What must be true of this kind of engine. Raises ManifestError."""

    @property
    @abstractmethod
    def signatures(self) -> Mapping[str, Signature]:
        """What the engine's models take and give, by name; a scorer's only model has the name ''."""

    @property
    @abstractmethod
    def main(self) -> str:
        """The component that nearly all time goes to."""

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """Entries beside weights, graphs and plans."""

    @property
    @abstractmethod
    def decides(self) -> dict[str, Any]:
        """What decides the results beside the entries' bytes, JSON-ready."""

    @staticmethod
    def graph_name(component: str, kind: str) -> str:
        """The name in ``graphs`` of a component's graph of a kind (``fp32``, ``fp16``, ...)."""
        return f"{component}-{kind}" if component else kind

    def kinds(self, component: str = "") -> tuple[str, ...]:
        """The kinds of graphs that there are of a component."""
        return tuple(kind for kind in GRAPH_KINDS if self.graph_name(component, kind) in self.graphs)

    @property
    def engine_id(self) -> str:
        """Hex SHA-256 over graphs, weights and everything that decides a result.

        Name, licence, provenance, validation notes and plans do not take part: adding a plan or correcting a text
        changes nothing that was scored.
        """
        made = {n: e.sha256 for n, e in sorted(self.entries.items()) if not n.startswith("plans/")}
        spec = {"entries": made, **self.decides}
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
        require_version("schema", data.get("schema"), SCHEMA)
        preprocess = data.get("preprocess")
        if isinstance(preprocess, Mapping) and "version" in preprocess:  # first: a newer one may differ in the rest
            require_version("preprocess.version", preprocess["version"], PREPROCESSING_VERSION)
        manifest: Manifest = typed(data, _class_of(data.get("kind", "scorer")), "")
        stated = data.get("engine_id")
        require(stated in (None, manifest.engine_id), "engine_id does not match the content")
        return manifest


def _class_of(kind: Any) -> type[Manifest]:
    from .generator_manifest import GeneratorManifest
    from .scorer_manifest import ScorerManifest

    classes: dict[str, type[Manifest]] = {"scorer": ScorerManifest, "unet": GeneratorManifest}
    if not isinstance(kind, str) or kind not in classes:
        what = f"unknown kind {reprlib.repr(kind)}, kind is one of {', '.join(map(repr, classes))}"
        raise not_valid(what)
    return classes[kind]
