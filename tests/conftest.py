"""Photos as they are in life, for every test that needs them."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"


@dataclass(frozen=True)
class Hostile:
    """A folder of difficult pictures: those that can be scored, and those that cannot, with the error's name."""

    folder: Path
    good: dict[str, Path]
    bad: dict[str, tuple[Path, str]]


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The example photos that are whole, sorted by name."""
    return sorted(p for p in PHOTOS.glob("*.jpg") if p.name != "broken.jpg")


@pytest.fixture(scope="session")
def broken_photo() -> Path:
    """A JPEG that ends too early."""
    return PHOTOS / "broken.jpg"


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """One real photo, 600 x 400, RGB, decoded; do not change it."""
    with Image.open(PHOTOS / "coffee.jpg") as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., bytes]:
    """Makes ICC profiles: RGB primaries (XYZ at D50) and a response curve. The defaults are Adobe RGB (1998)."""
    return _icc_profile


@pytest.fixture(scope="session")
def on_full_disk() -> Callable[[list[str], int], subprocess.CompletedProcess[str]]:
    """Runs a command that can write only so many bytes into a file, which stands for a disk that is full."""
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX's")
    # Python 3.11 would keep the .pyc files that the limit cuts off
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def run(command: list[str], size: int) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=limit)

    return run


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory, photo: Image.Image) -> Hostile:
    """Every kind of file that a photo folder may hold; made once, do not change it."""
    folder = tmp_path_factory.mktemp("hostile")
    return Hostile(folder, _good_pictures(folder, photo.resize((150, 100))), _bad_pictures(folder, photo))


def _good_pictures(folder: Path, small: Image.Image) -> dict[str, Path]:
    good: dict[str, Path] = {}

    def save(name: str, image: Image.Image, **options: object) -> None:
        good[name] = folder / name
        image.save(good[name], **options)

    save("plain.jpg", small)
    save("progressive.jpg", small, progressive=True)
    save("cmyk.jpg", small.convert("CMYK"))
    save("grey.jpg", small.convert("L"))
    save("profile.jpg", small, icc_profile=_icc_profile())
    save("palette.png", small.quantize(32), transparency=0)
    save("alpha.png", _with_alpha(small))
    save("grey-alpha.png", _with_alpha(small).convert("LA"))
    save("bilevel.png", small.convert("1"))
    save("sixteen.png", Image.fromarray(np.asarray(small.convert("L"), np.uint16) * 257))
    save("sixteen.tif", Image.fromarray(np.asarray(small.convert("L"), np.uint16) * 257))
    save("pages.tif", small, save_all=True, append_images=[small.rotate(180)])
    save("animated.gif", small, save_all=True, append_images=[small.rotate(90)])
    save("animated.webp", small, save_all=True, append_images=[small.rotate(90)], lossless=True)
    save("one-pixel.png", Image.new("RGB", (1, 1), "red"))
    save("strip.png", Image.new("RGB", (30000, 1), "red"))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        # stored on its side where a viewer will turn it, so that all of them are upright landscapes
        save(
            f"exif-{orientation}.jpg",
            small if orientation < 5 else small.transpose(Image.Transpose.TRANSPOSE),
            exif=exif,
        )
    for name in ("two words.jpg", "Fotografía 写真 📷.jpg") + (("new\nline.jpg",) if os.name == "posix" else ()):
        save(name, small)
    if os.name == "posix" and os.uname().sysname == "Linux":
        not_unicode = os.fsdecode(b"caf\xe9.jpg")
        save(not_unicode, small)
    return good


def _bad_pictures(folder: Path, photo: Image.Image) -> dict[str, tuple[Path, str]]:
    whole = (PHOTOS / "coffee.jpg").read_bytes()
    contents = {
        "empty.jpg": b"",
        "truncated.jpg": whole[: len(whole) // 2],
        "text.jpg": b"Dear diary, today I renamed a text file.\n",
        "header-only.jpg": whole[:200],
        "zeros.jpg": bytes(5000),
    }
    bad = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        bad[name] = (folder / name, "ImageDecodeError")
    Image.fromarray(np.asarray(photo.convert("L"), np.float32)).save(folder / "float.tif")
    bad["float.tif"] = (folder / "float.tif", "ImageDecodeError")
    (folder / "bomb.png").write_bytes(_png_of_size(20000, 20000))
    bad["bomb.png"] = (folder / "bomb.png", "ImageTooLargeError")
    (folder / "folder.jpg").mkdir()
    for name in ("folder.jpg", "missing.jpg", "x" * 300 + ".jpg", "nul\0.jpg", "\ud800.jpg"):
        bad[name] = (folder / name, "ImageNotFoundError")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
        (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
        (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
        for name in ("pipe.jpg", "dangling.jpg", "circle.jpg"):
            bad[name] = (folder / name, "ImageNotFoundError")
    return bad


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises that many bilevel pixels, and that has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _with_alpha(image: Image.Image) -> Image.Image:
    """Opaque on the left, transparent on the right."""
    ramp = Image.fromarray(np.tile(np.linspace(255, 0, image.width).astype(np.uint8), (image.height, 1)))
    result = image.convert("RGBA")
    result.putalpha(ramp)
    return result


def _icc_profile(
    red: tuple[float, float, float] = (0.60974, 0.31111, 0.01947),
    green: tuple[float, float, float] = (0.20528, 0.62567, 0.06087),
    blue: tuple[float, float, float] = (0.14919, 0.06322, 0.74457),
    curve: tuple[int, ...] = (563,),
) -> bytes:
    """A minimal ICC v2 matrix profile; ``curve`` is one gamma in 1/256, or a table from 0 to 65535."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    response = b"curv\0\0\0\0" + struct.pack(f">I{len(curve)}H", len(curve), *curve)
    response += bytes(-len(response) % 4)
    text = b"test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {
        b"desc": description + bytes(-len(description) % 4),
        b"cprt": b"text\0\0\0\0CC0\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(*red),
        b"gXYZ": xyz(*green),
        b"bXYZ": xyz(*blue),
        b"rTRC": response,
        b"gTRC": response,
        b"bTRC": response,
    }
    table, data, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(tag))
        data += tag
    header = bytearray(128)
    header[0:4] = struct.pack(">I", offset + len(data))
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = b"mntrRGB XYZ "
    header[36:40] = b"acsp"
    header[68:80] = xyz(0.9642, 1.0, 0.8249)[8:]
    return bytes(header) + table + data
