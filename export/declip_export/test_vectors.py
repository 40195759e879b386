"""Pixels and scores of an engine as files, so that whoever embeds it in another language can check theirs.

    python -m declip_export.test_vectors ENGINE PHOTOS -o FOLDER

The folder gets the photos, ``pixels/NAME.npy`` uint8 [S, S, 3] for each (the exact preprocessing), and
``vectors.json``: raw and calibrated scores and the perceptual embedding, computed in FP32 from those pixels. Scores
from the stored pixels should agree within 1e-4; those from a photo that another decoder read, within 0.02.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from declip_runtime.backends import choose
from declip_runtime.calibration import calibrate
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import DeclipError, UsageError
from declip_runtime.images import open_image
from declip_runtime.preprocess import prepare

from .onnx_graph import Array

PIXEL_TOLERANCE = 1e-4
PHOTO_TOLERANCE = 0.02


def write_test_vectors(engine: EngineFile, photos: Sequence[Path], folder: Path) -> Path:
    """Write the vectors of ``engine`` for ``photos`` to ``folder``; returns the path of ``vectors.json``.

    Raises UsageError for photos that share a name, ImageError for one that cannot be read.
    """
    if len({p.stem for p in photos}) < len(photos):
        raise UsageError("two photos have the same name. Rename one: vectors are kept by name.")
    manifest = engine.scorer
    (folder / "pixels").mkdir(parents=True, exist_ok=True)
    backend = choose(engine, precision="fp32")
    vectors: list[dict[str, Any]] = []
    for photo in photos:
        pixels = prepare(open_image(photo), manifest.preprocess)
        output = backend.run(pixels)
        calibrated = calibrate(manifest.scores, output.scores)
        if photo.resolve() != (folder / photo.name).resolve():  # vectors made anew, in place
            shutil.copyfile(photo, folder / photo.name)
        np.save(folder / "pixels" / f"{photo.stem}.npy", pixels[0])
        vectors.append(
            {
                "photo": photo.name,
                "pixels": f"pixels/{photo.stem}.npy",
                "raw": _by_name(manifest.score_names, output.scores[0]),
                "calibrated": _by_name(manifest.score_names, calibrated[0]),
                "perceptual": [round(float(v), 7) for v in output.perceptual[0]],
            }
        )
    description = {
        "engine": manifest.name,
        "engine_id": engine.id,
        "computed_by": backend.description,
        "tolerance": {"from_pixels": PIXEL_TOLERANCE, "from_photo": PHOTO_TOLERANCE},
        "vectors": vectors,
    }
    path = folder / "vectors.json"
    path.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return path


def _by_name(names: Sequence[str], values: Array) -> dict[str, float]:
    return {name: round(float(value), 7) for name, value in zip(names, values, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m declip_export.test_vectors", description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("photos", type=Path, nargs="+", help="photos, or folders of photos")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    photos = [
        file for p in options.photos for file in (sorted(f for f in p.iterdir() if f.is_file()) if p.is_dir() else [p])
    ]
    try:
        path = write_test_vectors(EngineFile.open(options.engine), photos, options.output)
    except DeclipError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{path}: {len(photos)} photos\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
