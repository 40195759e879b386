"""What a picture says of how it was made, enough to make it again: JSON in its PNG file, and back to arguments."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from declip_runtime.atomic import replacing
from declip_runtime.decoders import identify, reason, vendor_boundary
from declip_runtime.errors import DeclipError, ImageNotFoundError, UsageError
from declip_runtime.images import describe
from declip_runtime.version import __version__

from .conditions import Opened, Reference, open_reference
from .request import OUTPUTS, References, Request

KEY = "declip"
"""The name of the record in ``Image.info`` and among the texts of a PNG file."""

FORMAT = 1
_PACKAGES = ("diffusers", "torch", "tokenizers", "numpy", "pillow")
_ARGUMENTS = ("steps", "guidance", "width", "height", "seed", "scheduler")

Record = dict[str, Any]
"""A record as JSON has it; what it holds is in ``make_record``."""


def make_record(request: Request, picture: int, opened: tuple[Opened, ...], made_with: Mapping[str, Any]) -> Record:
    """The record of one picture of a request; ``made_with`` tells engine, backend, device and precision."""
    conditions = {
        o.condition.kind: {
            "images": [{"path": r.path, "sha256": r.sha256, "of": r.of} for r in o.references],
            "scale": o.condition.scale,
        }
        for o in opened
    }
    return {
        "format": FORMAT,
        **made_with,
        "prompt": request.prompts[picture],
        "negative_prompt": request.negatives[picture],
        "conditions": conditions,
        "steps": request.steps,
        "guidance": request.guidance,
        "width": request.width,
        "height": request.height,
        "seed": request.seeds[picture],
        "scheduler": request.scheduler,
    }


def versions() -> dict[str, str]:
    """The versions that a record names."""
    found = {"declip-sdk": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def stamp(image: Image.Image, record: Mapping[str, Any]) -> None:
    """Put a record into ``image.info``, from where ``save`` takes it."""
    image.info[KEY] = json.dumps(record, allow_nan=False)  # ASCII, so that every reader of PNG texts can show it


def save(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture as PNG with its record. It appears complete, in place of what was there, or not at all.

    Raises UsageError for another extension than .png, which could not keep the record, and for a place that cannot be
    written.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UsageError(
            f"{target} would lose the record of how the picture was made. Name a .png file, or use image.save."
        )
    texts = PngImagePlugin.PngInfo()
    if KEY in image.info:
        texts.add_text(KEY, image.info[KEY])
    try:
        with replacing(target) as file:
            image.save(file, "PNG", pnginfo=texts)
    except (OSError, ValueError) as error:  # ValueError: a path that can be none
        why = getattr(error, "strerror", None) or reason(error)
        raise UsageError(f"cannot write {target}: {why}. Choose another place.") from error
    return target


def read_record(source: str | os.PathLike[str] | Image.Image) -> Record:
    """The record of a picture: of a PNG file, or of an image that ``generate`` returned.

    Raises ImageError for a file that is no picture, UsageError for a picture without a record, and for one that a newer
    SDK wrote.
    """
    name = describe(source)
    text = _text_of(source, name)
    if not isinstance(text, str):
        raise UsageError(f"{name} does not say how it was made. Use a PNG file that was saved by declip generate.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the record of {name} is damaged. Copy or generate the picture again.") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise UsageError(f"the record of {name} is damaged. Copy or generate the picture again.")
    if record["format"] > FORMAT:
        raise UsageError(f"the record of {name} was written by a newer SDK. Run: pip install -U declip-sdk")
    return record


def differences(record: Mapping[str, Any], identity: Mapping[str, object]) -> list[str]:
    """What made the picture of ``record`` and is another in ``identity`` (``DPAdapter.identity``), a phrase each."""
    engine = record.get("engine")
    then = {**record, "engine": engine.get("id") if isinstance(engine, dict) else None}
    changed = [name for name in ("engine", "backend", "precision") if then.get(name) != identity[name]]
    return [f"another {name} ({str(then.get(name))[:8]}, here {str(identity[name])[:8]})" for name in changed]


def repeat(
    record: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    perceptual: References = None,
    semantic: References = None,
    image: References = None,
) -> dict[str, Any]:
    """The arguments of ``DPAdapter.generate`` that make the picture of ``record`` again.

    Reference images are looked for where the record says, a relative path from the working directory and then from
    ``folder``, mostly that of the picture. Those that moved, and those that came from memory, are given here; all are
    compared with their hashes.

    Raises UsageError for a record that is incomplete, and for an image that is not the one of the record;
    ImageNotFoundError for one that is not there any more.
    """
    given = {"perceptual": perceptual, "semantic": semantic, "image": image}
    try:
        arguments = {name: record[name] for name in ("prompt", "negative_prompt", *_ARGUMENTS)}
        conditions = record["conditions"]
        if not isinstance(conditions, Mapping):
            raise TypeError("its conditions are none")
        for kind in OUTPUTS:
            if kind in conditions:
                arguments[kind] = _same_images(kind, conditions[kind]["images"], given[kind], folder)
                arguments[f"{kind}_scale"] = conditions[kind]["scale"]
    except (LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"the record is incomplete ({reason(error)}). Generate the picture again.") from error
    return arguments


def _same_images(
    kind: str, recorded: list[Mapping[str, Any]], given: Any, folder: str | os.PathLike[str] | None
) -> list[Any]:
    references = [Reference(item["path"], item["sha256"], item["of"]) for item in recorded]
    if given is None:
        found = [_found(kind, reference, folder) for reference in references]
    else:
        found = list(given) if isinstance(given, list | tuple) else [given]
    if len(found) != len(references):
        raise UsageError(f"{len(found)} images were given for {kind}, the record has {len(references)}. Give as many.")
    for source, reference in zip(found, references, strict=True):
        _, now = open_reference(source)
        if now.of == reference.of and now.sha256 != reference.sha256:
            raise UsageError(
                f"{describe(source)} is not the {kind} image of the record any more: its content has changed."
                f" Give the old one as {kind}, or generate anew."
            )
        if now.of != reference.of:
            raise UsageError(
                f"the {kind} image of the record is known by its {reference.of}, {describe(source)} was given."
                f" Give a {'path or bytes' if reference.of == 'file' else 'PIL image or an array'}."
            )
    return found


def _found(kind: str, reference: Reference, folder: str | os.PathLike[str] | None) -> Path:
    if reference.path is None:
        raise UsageError(f"the {kind} image of the record came without a file. Give it again as {kind}.")
    path = Path(reference.path)
    places = dict.fromkeys([path] if folder is None else [path, Path(folder) / path])  # equal ones are one
    for place in places:
        if place.is_file():
            return place
    tried = " and ".join(repr(str(place)) for place in places)
    raise ImageNotFoundError(f"the {kind} image of the record is not at {tried}. Give its new place as {kind}.")


def _text_of(source: str | os.PathLike[str] | Image.Image, name: str) -> object:
    if isinstance(source, Image.Image):
        return source.info.get(KEY)
    if not Path(source).is_file():  # opening a pipe would wait for its writer
        raise ImageNotFoundError(f"{name} does not exist, or is no file. Check the path.")
    try:
        with Path(source).open("rb") as file, vendor_boundary(name):
            image = identify(file, name)
            if image.format != "PNG":
                raise UsageError(f"{name} is no PNG file, which alone keeps a record. Use the PNG that was generated.")
            image.load()  # a text may stand behind the pixels
            return image.info.get(KEY)
    except DeclipError:
        raise
    except OSError as error:
        raise ImageNotFoundError(f"{name} cannot be read ({error.strerror or error}). Check the path.") from error
