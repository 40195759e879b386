"""``declip generate`` on engines of a few thousand weights, ``declip info`` of them, and wrong use of their export."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from runtime.generation import tiny_adapter, tiny_models
from runtime.generation.against_diffusers import close, theirs
from runtime.generation.tiny_models import Models

from declip_runtime.errors import BackendExecutionError
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.record import read_record, save, stamp
from declip_sdk.cli import generating, run
from declip_sdk.cli.group import declip

from .command import TINY
from .conftest import save_picture

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning:diffusers"),
    pytest.mark.usefixtures("folder"),
]

DOG = ["-p", "a dog"]
QUICK = [*DOG, "--steps", "2", "--scheduler", "ddim"]


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_models.make("sd")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter.write(tmp_path_factory.mktemp("engine") / "tiny-sd.engine", models).path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the photos a.png and b.png."""
    for seed, name in enumerate(("a.png", "b.png")):
        save_picture(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def generate(engine: Path) -> Callable[..., int]:
    """Runs the command on the fake backend."""
    return lambda *arguments: run(["generate", str(engine), "--backend", "fake", *map(str, arguments)])


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DPAdapter, "generate", lambda *_, **__: pytest.fail("it generated"))


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How much was done, each time that it was told."""
    told: list[float] = []

    @contextmanager
    def share_bar(_: str) -> Iterator[Callable[[str, float], None]]:
        yield lambda _, share: told.append(share)

    monkeypatch.setattr(generating, "share_bar", share_bar)
    return told


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException) -> None:
    """Let the generation of that number, from 1, fail."""
    generate, calls = DPAdapter.generate, iter(range(1, 1000))

    def counted(self: DPAdapter, *arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return generate(self, *arguments, **options)

    monkeypatch.setattr(DPAdapter, "generate", counted)


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".declip-lock")


def made(folder: Path) -> list[str]:
    """What is there beside the two photos."""
    return [name for name in names(folder) if name not in ("a.png", "b.png")]


def rises(shares: list[float]) -> bool:
    return len(shares) > 3 and shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1.0


# --- pictures


def test_a_picture_is_that_of_diffusers_and_is_repeated(
    engine: Path, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """The models really run here, as torch has them."""
    tiny_adapter.with_torch(monkeypatch, models)
    command = ["generate", str(engine), "--backend", "fake"]
    options = ["--perceptual", "a.png", "--perceptual-scale", "0.5", "--seed", "3", "--scheduler", "ddim"]
    assert run([*command, "-p", "a red house", *options, "-o", "out.png"]) == 0
    assert capfd.readouterr().out == "out.png: seed 3\n"
    with Image.open("a.png") as photo:
        wanted = theirs(models, [3], {"perceptual": [photo]}, [0.5], prompt="a red house", scheduler="ddim")
    close(pixels(folder / "out.png")[None].astype(np.float32) / 255, np.round(wanted * 255) / 255)
    assert run([*command, "--repeat", "out.png", "-o", "again.png"]) == 0
    np.testing.assert_array_equal(pixels(folder / "again.png"), pixels(folder / "out.png"))
    assert run([*command, "--repeat", "out.png", "--perceptual-scale", '{"up": 1}', "-o", "other.png"]) == 0
    assert (pixels(folder / "other.png") != pixels(folder / "out.png")).any()


def test_many_pictures_are_numbered_so_that_they_sort(
    generate: Callable[..., int], folder: Path, shares: list[float], capfd: Any
) -> None:
    assert generate(*QUICK, "-n", 11, "--seed", 5, "-o", "dog.png") == 0
    wanted = [f"dog-{number:02}.png" for number in range(1, 12)]
    assert made(folder) == wanted
    assert [read_record(name)["seed"] for name in wanted] == list(range(5, 16))
    out = capfd.readouterr().out.splitlines()
    assert out == [f"{name}: seed {seed}" for seed, name in enumerate(wanted, 5)]
    assert rises(shares)
    assert shares[-1] == 1.0


def test_pictures_are_written_as_soon_as_they_are_made(
    generate: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stop_at(monkeypatch, 3, KeyboardInterrupt())
    assert generate(*QUICK, "-n", 10, "-o", "dog.png") == 130
    assert made(folder) == [f"dog-0{number}.png" for number in range(1, 5)]  # two at once
    assert capfd.readouterr().out.count(": seed ") == 4


def test_without_an_output_nothing_is_replaced(generate: Callable[..., int], folder: Path) -> None:
    assert [generate(*QUICK, "--seed", seed) for seed in (1, 2)] == [0, 0]
    assert generate(*QUICK, "-n", 2) == 0
    assert generate(*QUICK, "-n", 2) == 0
    assert made(folder) == [
        "generated-1.png", "generated-2.png", "generated.png", "generated_2-1.png", "generated_2-2.png",
        "generated_2.png",
    ]  # fmt: skip
    assert (read_record("generated.png")["seed"], read_record("generated_2.png")["seed"]) == (1, 2)


def test_a_picture_that_another_run_made_in_the_meantime_is_not_replaced(
    generate: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    made = DPAdapter.generate

    def slower(self: DPAdapter, *arguments: Any, **options: Any) -> Any:
        pictures = made(self, *arguments, **options)
        if not Path("generated.png").exists():
            save(pictures[0], "generated.png")  # as another process would
            Path("theirs").write_bytes(Path("generated.png").read_bytes())
        return pictures

    monkeypatch.setattr(DPAdapter, "generate", slower)
    assert generate(*QUICK, "--seed", "3") == 0
    assert capfd.readouterr().out == "generated_2.png: seed 3\n"
    assert Path("generated.png").read_bytes() == Path("theirs").read_bytes()


def test_what_was_generated_may_be_replaced_where_it_is_named(generate: Callable[..., int]) -> None:
    assert [generate(*QUICK, "--seed", seed, "-o", "dog.png") for seed in (1, 2)] == [0, 0]
    assert read_record("dog.png")["seed"] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--perceptual", "a.png", "-o", "a.png"], "a.png is read here and will not be overwritten"),
        (["--perceptual", "a.png", "-o", "./link.png"], "link.png is read here and will not be overwritten"),
        (["--semantic", "b.png", "-o", "a.png"], "a.png is a photo and will not be overwritten"),
        (["--image", "own.png", "-o", "own.png"], "own.png is read here and will not be overwritten"),
        (["--repeat", "own.png", "-o", "own.png"], "own.png is read here and will not be overwritten"),
        (["-p", "a", "-n", "2", "-o", "photo.png"], "photo-2.png is a photo and will not be overwritten"),
        (["--image", "b.png", "--preview", "b.png"], "b.png is read here and will not be overwritten"),
        (["-p", "a", "--preview", "a.png"], "a.png is a photo and will not be overwritten"),
        (["--image", "b.png", "--sheet", "modes,seeds", "-o", "a.png"], "a.png is a photo"),
        (["--image", "sheet/1-1.png", "--sheet", "modes,seeds", "-o", "sheet.png"], "sheet/1-1.png is read here"),
        (["-p", "a", "--sheet", "scales,seeds", "-o", "sheet.png"], "sheet/1-1.png is a photo"),
        (["-p", "a", "-o", "pipe.png"], "pipe.png is a pipe"),
        (["-p", "a", "-o", "folder.png"], "folder.png is a folder"),
        (["-p", "a", "-o", "dog.jpg"], "dog.jpg is no .png file"),
        (["-p", "a", "-o", "nowhere/dog.png"], "the folder nowhere does not exist"),
        (["-p", "a", "--preview", "dog.jpg"], "dog.jpg is no .png file"),
        (["-p", "a", "--preview", "nowhere/dog.png"], "the folder nowhere does not exist"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("nothing_runs")
def test_places_are_looked_at_before_anything_runs(
    generate: Callable[..., int], folder: Path, options: list[str], told: str, capfd: Any
) -> None:
    (folder / "link.png").symlink_to("a.png")
    (folder / "folder.png").mkdir()
    (folder / "sheet").mkdir()
    os.mkfifo(folder / "pipe.png")
    save_picture(folder / "photo-2.png", 5)
    save_picture(folder / "sheet" / "1-1.png", 5)
    own = Image.new("RGB", (32, 32))
    stamp(own, {**RECORD})
    save(own, "own.png")
    before = {path: path.read_bytes() for path in folder.rglob("*.png") if path.is_file()}
    assert generate(*options) == 2
    err = capfd.readouterr().err.splitlines()
    assert told in err[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*.png") if path.is_file()} == before


RECORD: dict[str, Any] = {
    "format": 1, "prompt": "a dog", "negative_prompt": "", "conditions": {}, "steps": 2, "guidance": 5.0, "width": 32,
    "height": 32, "seed": 1, "scheduler": "ddim", "backend": "fake", "precision": "fp32",
}  # fmt: skip


def test_a_preview_is_shown_of_a_few_steps_too_and_may_be_replaced(
    generate: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = generating.save
    monkeypatch.setattr(
        generating, "save", lambda image, path: (written.append(Path(path).name), original(image, path))[1]
    )
    assert generate(*DOG, "--steps", 4, "--scheduler", "ddim", "--preview", "now.png", "-o", "dog.png") == 0
    assert written == ["now.png"] * 4 + ["dog.png"]
    np.testing.assert_array_equal(pixels(folder / "now.png"), pixels(folder / "dog.png"))
    written.clear()
    assert generate(*DOG, "--steps", 45, "--scheduler", "ddim", "--preview", "now.png", "-o", "dog.png") == 0
    assert written == ["now.png"] * 11 + ["dog.png"]
    assert generate("--repeat", "now.png", "-o", "x.png") == 2


# --- what a user can get wrong


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "nothing says what to generate. Give --prompt"),
        (["--sheet", "scales,seeds"], "nothing says what to generate"),
        (["-p", "a", "--sheet", "modes,seeds"], "modes compare reference images, and none was given"),
        (["-p", "a", "--sheet", "seeds"], "--sheet 'seeds' cannot work. Name rows and columns"),
        (["-p", "a", "--sheet", "seeds,seeds"], "cannot work. Name rows and columns"),
        (["-p", "a", "--sheet", "seeds,scales", "--seed", "3"], "--sheet seeds,scales sets what --seed does"),
        (["-p", "a", "--sheet", "seeds,scales", "--image-scale", "1"], "sets what --image-scale does"),
        (["-p", "a", "--scales", "0.5"], "--scales are those of a sheet with scales. Add --sheet"),
        (["-p", "a", "--seeds", "1,2"], "--seeds are those of a sheet with seeds"),
        (["--image", "a.png", "--sheet", "modes,seeds", "--scales", "1"], "--scales are those of a sheet with scales"),
        (["-p", "a", "--sheet", "seeds,scales", "--scales", "1,nan"], "'1,nan' is not numbers with commas between"),
        (["-p", "a", "--sheet", "seeds,scales", "--seeds", "1,x"], "'1,x' is not numbers with commas between"),
        (["-p", "a", "--sheet", "seeds,scales", "-n", "2"], "--count and --sheet do not go together"),
        (["-p", "a", "--sheet", "seeds,scales", "--preview", "x.png"], "--preview and --sheet do not go together"),
        (["--jobs", "jobs.jsonl", "--preview", "x.png"], "--preview and --jobs do not go together"),
        (["--jobs", "jobs.jsonl", "--sheet", "seeds,scales"], "--jobs and --sheet do not go together"),
        (["--jobs", "jobs.jsonl", "--repeat", "a.png"], "--repeat and --jobs do not go together"),
        (["-p", "a", "--perceptual-scale", "strong"], "'strong' is neither a number nor JSON"),
        (["-p", "a", "--perceptual-scale", "[" * 100_000], "is neither a number nor JSON"),
        (["--image", "a.png", "--image-scale", "1e39"], "image_scale is 1e+39. Give a number, mostly 0 to 1"),
        (["--image", "a.png", "--image-scale", "1" + "0" * 400], "image_scale is 1000"),
        (["-p", "a", "--guidance", "1e39"], "guidance=1e+39 cannot work"),
        (["-p", "a", "-n", "2000000000"], "2000000000 is not in the range 1<=x<=10000"),
        (["-p", "a", "--steps", "10000000000000"], "steps=10000000000000 cannot work"),
        (["-p", "a", "--width", "50"], "width=50 cannot work"),
        (["-p", "a", "--seed", "-1"], "seed=-1 cannot work"),
        (["-p", "a", "--scheduler", "magic"], "scheduler='magic' is unknown"),
        (["--image", "nowhere.png"], "'nowhere.png' does not exist"),
        (["--repeat", "a.png"], "does not say how it was made"),
        (["--repeat", "nowhere.png"], "does not exist"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_use_is_one_line_and_nothing_is_written(
    generate: Callable[..., int], folder: Path, options: list[str], told: str, capfd: Any
) -> None:
    assert generate(*options) == 2
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if "made up" not in line and not line.endswith(" s")]
    assert told in lines[-1]
    assert len(lines[-1]) < 700
    assert captured.out == ""
    assert made(folder) == []


def test_an_engine_that_scores_is_told(capfd: Any) -> None:
    assert run(["generate", str(TINY), *DOG]) == 2
    assert "scores photos and generates none" in capfd.readouterr().err


# --- a sheet


def test_a_sheet_and_its_pictures(generate: Callable[..., int], folder: Path, shares: list[float], capfd: Any) -> None:
    options = ["--perceptual", "a.png", "--semantic", "b.png", "--steps", "2", "--sheet", "modes,scales"]
    assert generate(*options, "--scales", "0.2,0.9") == 0
    assert made(folder) == ["sheet", "sheet.png"]
    assert names(folder / "sheet") == [f"{row}-{column}.png" for row in range(1, 5) for column in (1, 2)]
    records = [[read_record(folder / "sheet" / f"{row}-{column}.png") for column in (1, 2)] for row in range(1, 5)]
    assert [sorted(row[0]["conditions"]) for row in records] == [
        [], ["perceptual", "semantic"], ["perceptual"], ["semantic"],
    ]  # fmt: skip
    assert [record["conditions"]["semantic"]["scale"] for record in records[3]] == [0.2, 0.9]
    assert "sheet.png: 4 x 2 pictures, each in sheet" in capfd.readouterr().out
    assert rises(shares)
    assert pixels(folder / "sheet.png").shape[1] > 512
    assert generate(*DOG, "--sheet", "seeds,scales", "--steps", 2, "-o", "sheet.png") == 0  # ours to replace
    assert generate(*DOG, "--sheet", "seeds,scales", "--steps", 2) == 0
    assert made(folder) == ["sheet", "sheet.png", "sheet_2", "sheet_2.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendExecutionError("the GPU fell off. Run it again.")])
def test_what_is_made_of_a_sheet_is_kept(
    generate: Callable[..., int], folder: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stop_at(monkeypatch, 3, error)
    assert generate(*QUICK, "--sheet", "seeds,scales") in (2, 130)
    assert made(folder) == ["sheet"]
    # Without a condition all strengths are one picture.
    assert names(folder / "sheet") == [f"{row}-{column}.png" for row in (1, 2) for column in (1, 2, 3)]
    assert "no sheet, but 6 pictures of 9 in sheet" in capfd.readouterr().err


@pytest.mark.usefixtures("nothing_runs")
def test_a_sheet_that_cannot_be_is_told_first(generate: Callable[..., int], folder: Path, capfd: Any) -> None:
    (folder / "sheet").write_text("a file")
    assert generate(*DOG, "--sheet", "seeds,scales", "-o", "sheet.png") == 2
    assert "sheet is a file, and the sheet's pictures need that as a folder" in capfd.readouterr().err
    numbers = ",".join(map(str, range(300)))
    assert generate(*DOG, "--sheet", "scales,seeds", "--seeds", numbers, "-o", "large.png") == 2
    assert "is over 16384 a side" in capfd.readouterr().err
    assert made(folder) == ["sheet"]


# --- again


def test_images_that_moved_are_stated_and_compared(generate: Callable[..., int], folder: Path, capfd: Any) -> None:
    assert generate("--perceptual", "a.png", *QUICK, "-o", "dog.png") == 0
    (folder / "a.png").rename("moved.png")
    capfd.readouterr()
    assert generate("--repeat", "dog.png", "-o", "again.png") == 2
    assert "is not at 'a.png'. Give its new place" in capfd.readouterr().err  # and not at 'a.png' and 'a.png'
    assert generate("--repeat", "dog.png", "--perceptual", "moved.png", "-o", "again.png") == 0
    np.testing.assert_array_equal(pixels(folder / "again.png"), pixels(folder / "dog.png"))
    for there in ("a.png", "moved.png"):  # it makes no difference whether the old place has one
        (folder / there).write_bytes((folder / "b.png").read_bytes())
        assert generate("--repeat", "dog.png", "--perceptual", "b.png", "-o", "other.png") == 2
        assert "b.png' is not the perceptual image of the record any more" in capfd.readouterr().err


def test_another_engine_is_told(generate: Callable[..., int], folder: Path, capfd: Any) -> None:
    assert generate(*QUICK, "-o", "dog.png") == 0
    record = read_record("dog.png")
    picture = Image.open("dog.png").convert("RGB")
    for engine in ({"id": "0123456789"}, "abc", None):
        stamp(picture, {**record, "engine": engine, "precision": "fp16"})
        save(picture, "old.png")
        capfd.readouterr()
        assert generate("--repeat", "old.png", "-o", "new.png") == 0
        err = capfd.readouterr().err
        assert "old.png was made with another engine (" in err
        assert ", another precision (fp16, here fp32): it will not come out quite the same" in err
    stamp(picture, {**record, "conditions": []})
    save(picture, "old.png")
    assert generate("--repeat", "old.png", "-o", "new.png") == 2
    assert "the record is incomplete" in capfd.readouterr().err


# --- jobs


def write(*lines: Any) -> None:
    Path("jobs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")


def test_jobs_are_made_and_go_on(
    generate: Callable[..., int], folder: Path, shares: list[float], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    write({"prompt": "a dog", "images_per_prompt": 5, "name": "dog"}, {"semantic": "a.png"}, {"prompt": "a house"})
    stop_at(monkeypatch, 4, BackendExecutionError("the GPU fell off. Run it again."))
    options = ["--jobs", "jobs.jsonl", "--steps", "2", "-o", "out"]
    assert generate(*options) == 1
    captured = capfd.readouterr()
    assert captured.out == "out: 6 pictures made, 1 missing because 1 job failed\n"
    assert "line 2 (00002): the GPU fell off. Run it again." in captured.err
    assert rises(shares)
    assert len(set(shares)) == len(shares)  # and never two jobs at the same place
    assert names(folder / "out") == ["00003.png", *(f"dog-{number}.png" for number in range(1, 6))]
    assert generate(*options) == 0
    assert capfd.readouterr().out == "out: 1 picture made, 6 there already\n"


@pytest.mark.usefixtures("nothing_runs")
def test_bad_lines_are_said_one_by_one(generate: Callable[..., int], capfd: Any) -> None:
    write({"prompt": "a"}, *[{"promt": "b"}] * 30)
    assert generate("--jobs", "jobs.jsonl") == 2
    told = [line for line in capfd.readouterr().err.splitlines() if "made up" not in line]
    assert [line.partition(":")[2].partition(":")[0] for line in told[:20]] == [f" line {n}" for n in range(2, 22)]
    assert told[20] == "declip: and 10 more"
    assert told[21:] == ["declip: 30 of the lines in jobs.jsonl are no job that can run. Correct them."]
    Path("jobs.jsonl").write_text("")
    assert generate("--jobs", "jobs.jsonl") == 2
    assert "jobs.jsonl holds no job" in capfd.readouterr().err


# --- what an engine says of itself


def test_info_of_a_generator(engine: Path, capfd: Any) -> None:
    assert run(["info", str(engine)]) == 0
    out = capfd.readouterr().out
    for told in ("tiny-sd", "32 x 32 pixels, Stable Diffusion", "4 steps, guidance 5, PNDMScheduler", "models"):
        assert told in out
    for component in tiny_adapter.WEIGHTS:
        assert component in out
    assert run(["info", "--format", "json", str(engine)]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["manifest"]["kind"] == "unet"
    assert list(found["manifest"]["components"]) == list(tiny_adapter.WEIGHTS)


# --- the export, as far as it needs no model


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--adapter", "x"], "Missing option '--base'"),
        (["--base", "x"], "Missing option '--adapter'"),
        (["--base", "x", "--adapter", "y", "-o", "nowhere/dp.engine"], "the folder nowhere does not exist"),
        (["--base", "x", "--adapter", "y", "-o", "."], "is a folder. Name a file"),
        (["--base", "x", "--adapter", "y", "-o", "a.png"], "a.png is a photo and will not be overwritten"),
        (["--base", "x", "--adapter", "y", "--lora", "l@strong"], "'strong' is no strength. Write it as FILE@0.8"),
        (["--base", "x", "--adapter", "y", "--height", "tall"], "'tall'"),
        (["--base", "x", "--adapter", "y", "--steps", "0"], "0 is not in the range"),
        (["--base", "x", "--adapter", "y", "--weights", "int4"], "'int4' is not one of"),
        (["--base", "x", "--adapter", "y", "--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--base", "x", "--adapter", "y"], "tower"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_use_of_the_export(folder: Path, options: list[str], told: str, capfd: Any) -> None:
    try:
        assert run(["export-generator", "-o", "dp.engine", *options]) == 2
    finally:
        logging.disable(logging.NOTSET)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("declip: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert made(folder) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--adapter", "models/ip.bin"],
        ["--adapter", "models:ip.bin"],
        ["--adapter", "y", "--lora", "models:ip.bin@0.5"],
        ["--adapter", "y", "--checkpoint", "models/ip.bin"],
    ],
)
def test_what_the_export_reads_is_not_overwritten(folder: Path, options: list[str], capfd: Any) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "ip.bin").write_bytes(b"hours of training")
    assert run(["export-generator", "--base", "x", *options, "-o", "models/ip.bin"]) == 2
    assert "models/ip.bin is read here and will not be overwritten" in capfd.readouterr().err
    assert (folder / "models" / "ip.bin").read_bytes() == b"hours of training"
    assert run(["export-generator", "--base", "models", "--adapter", "y", "-o", "models/new.engine"]) == 2
    assert "models/new.engine lies in models, which is read here. Name another place." in capfd.readouterr().err


# --- its page in docs


def test_the_commands_of_the_page_are_ones_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text("utf-8").replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("    declip ")]
    assert len(commands) >= 5
    for _, verb, *arguments in commands:
        command = declip.get_command(click.Context(declip), verb)
        assert command is not None
        command.make_context(verb, arguments)  # raises for options that there are not, and for lacking ones
