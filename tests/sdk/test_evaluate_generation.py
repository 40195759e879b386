"""``declip evaluate-generation`` from conditions to the report, with pictures of the fake backend and a tiny judge."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from declip_runtime.errors import BackendExecutionError
from declip_runtime.generation import adapter, job_runner
from declip_runtime.generation.record import read_record
from declip_runtime.scorer import Scorer
from declip_runtime.signature import Range
from declip_sdk.cli import run
from declip_sdk.cli.group import declip

from .command import TINY
from .generation_world import (
    CONDITIONS,
    World,
    build,
    embed,
    embed_words,
    save_picture,
    write_checkpoint,
    write_conditions,
    write_generator,
)

DP, IP, DIFFERENCE = "DP-Adapter", "IP-Adapter", "DP-Adapter - IP-Adapter"
CONTROLS = (
    "perceptual image + semantic text",
    "semantic image + perceptual text",
    "perceptual image + semantic image",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Do not change it."""
    return build(tmp_path_factory.mktemp("generation") / "world")


@pytest.fixture(scope="module")
def done(shared: World) -> Path:
    """The results of a whole run; do not change them."""
    folder = shared.folder / "results"
    assert run(shared.arguments("-o", folder, "--scale", "0.5,1", "--seeds", "7,3", "--guidance", "4")) == 0
    return folder


@pytest.fixture
def world(shared: World, tmp_path: Path) -> World:
    """A copy that may be changed."""
    shutil.copytree(shared.folder, tmp_path / "world", ignore=shutil.ignore_patterns("results"))
    return World(
        *(Path(str(path).replace(str(shared.folder), str(tmp_path / "world"))) for path in vars(shared).values())
    )


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]


# --- a whole run


def test_every_condition_is_generated_by_both_methods_with_the_same_seeds_and_settings(done: Path) -> None:
    lines = _lines(done)
    assert len(lines) == 7 * 2 * 2 * 2
    assert {(x["name"], x["method"], x["scale"], x["seed"]) for x in lines} == {
        (c["name"], m, s, n) for c in CONDITIONS for m in (DP, IP) for s in (0.5, 1.0) for n in (7, 3)
    }
    assert {x["file"] for x in lines} == {p.name for p in (done / "pictures").glob("*.png")}
    for line in lines:
        record = read_record(done / "pictures" / line["file"])
        assert (record["seed"], record["guidance"], record["steps"]) == (line["seed"], 4.0, 2)
        assert record["prompt"] == (line["perceptual_text"] or line["semantic_text"] or "")
        images = {k: line[f"{k}_image"] for k in ("perceptual", "semantic") if line[f"{k}_image"] is not None}
        acting = {k: [i["path"] for i in c["images"]] for k, c in record["conditions"].items()}
        assert acting == (
            {"image": [*images.values()]} if line["method"] == IP else {k: [v] for k, v in images.items()}
        )
        assert {c["scale"] for c in record["conditions"].values()} == {line["scale"]}


def test_measures_are_what_other_code_finds_in_the_pictures(shared: World, done: Path) -> None:
    lines = _lines(done)[::7]
    assert {line["control"] for line in lines} == set(CONTROLS)
    with Scorer(TINY, backend="fake") as scorer:
        qualities = scorer.score([done / "pictures" / line["file"] for line in lines])["quality"]
    for line, quality in zip(lines, qualities, strict=True):
        picture = done / "pictures" / line["file"]
        look, content = (line["perceptual_image"], line["semantic_image"])
        p, s = (embed(shared, picture, space) for space in ("perceptual", "semantic"))
        words = embed_words(shared, line["perceptual_text"] or line["semantic_text"] or "-")
        pc = p @ (embed(shared, Path(look), "perceptual") if look else words)
        sc = s @ (embed(shared, Path(content), "semantic") if content else words)
        leaks = [s @ embed(shared, Path(look), "semantic")] if look else []
        leaks += [p @ embed(shared, Path(content), "perceptual")] if content else []
        found = [line[name] for name in ("sc", "pc", "cc", "of", "leak")]
        assert found == pytest.approx([sc, pc, (sc + pc) / 2, quality, np.mean(leaks)], abs=1e-4)


def test_the_table_has_the_means_of_the_pictures(done: Path) -> None:
    lines = _lines(done)
    rows = list(csv.DictReader((done / "results.csv").open()))
    assert len(rows) == 4 * 2 * 3
    for row in rows:
        chosen = [x for x in lines if x["scale"] == float(row["scale"]) and row["control"] in ("all", x["control"])]
        for name in ("sc", "pc", "cc", "of", "leak"):
            mean = {m: np.mean([x[name] for x in chosen if x["method"] == m]) for m in (DP, IP)}
            expected = mean[DP] - mean[IP] if row["method"] == DIFFERENCE else mean[row["method"]]
            assert float(row[name]) == pytest.approx(expected)
            assert bool(row[f"{name}_low"]) == (row["control"] in CONTROLS[:2])  # the third has one condition only
        assert int(row["conditions"]) == len({x["name"] for x in chosen})
        assert int(row["pictures"]) == len(chosen) / 2


def test_the_page_says_what_it_is_not_and_what_it_was_made_with(shared: World, done: Path) -> None:
    page = (done / "results.md").read_text()
    assert "automatic stand-in for the user study" in page
    assert "not comparable with the paper's numbers" in page
    assert "made up by the fake backend" in page
    for said in ("| judge | tiny-judge (random) |", "| guidance | 4.0 |", "| seeds | 7, 3 |", "| strengths | 0.5, 1 |"):
        assert said in page
    assert "3 of the 3 images stand in several conditions" in page
    assert "favour" not in page
    with Image.open(done / "sheet-1.jpg") as sheet:
        assert sheet.height > 7 * 256
        assert sheet.width > (2 + 4) * 256


def test_the_terminal_shows_the_table_and_the_warning(world: World, done: Path, capfd: Any) -> None:
    shutil.copytree(done, world.folder / "out")
    arguments = world.arguments("-o", world.folder / "out", "--scale", "0.5,1", "--seeds", "7,3", "--guidance", "4")
    assert run(arguments) == 0
    captured = capfd.readouterr()
    assert "perceptual image + semantic text · strength 0.5\n" in captured.out
    assert captured.out.count(DIFFERENCE) == 8
    assert "not comparable with the paper's numbers" in captured.out
    assert "declip: 0 pictures generated, written to" in captured.err  # nothing of this depends on the place


def test_a_narrow_terminal_gets_means_only(done: Path) -> None:
    from declip_sdk.cli.evaluate_generation import page
    from declip_training.evaluation.generation.conditions import Condition
    from declip_training.evaluation.generation.measures import Measures
    from declip_training.evaluation.generation.plan import Planned
    from declip_training.evaluation.generation.report import Results
    from declip_training.evaluation.generation.summary import Picture, summarise

    pictures = [
        Picture(Planned(Condition(1, n, Path("a"), n), m, 1.0, 0, None), Measures(x, x, x, x, None))  # type: ignore[arg-type]
        for m in (DP, IP)
        for n, x in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    results = Results(summarise(pictures), pictures, [], {})
    for width, shown in ((100, False), (180, True)):
        console = Console(width=width)
        with console.capture() as drawn:
            console.print(page(results, console))
        assert ("(0.1" in drawn.get()) == shown
        assert ("Intervals are in results.md." in drawn.get()) != shown
        assert max(map(len, drawn.get().splitlines())) <= width
        assert "0.200" in drawn.get()


# --- going on


@pytest.fixture
def runs(world: World, capfd: Any) -> Callable[..., set[str]]:
    """Runs the command with more arguments; returns the names of the pictures that were made."""
    folder = world.folder / "out" / "pictures"

    def go(*more: str | Path) -> set[str]:
        before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
        assert run(world.arguments("-o", folder.parent, *more)) == 0
        made = {p.name for p in folder.glob("*.png") if before.get(p.name) != p.stat().st_mtime_ns}
        assert f"declip: {len(made)} picture" in capfd.readouterr().err
        return made

    return go


def test_what_is_there_is_not_made_again(world: World, runs: Callable[..., set[str]]) -> None:
    assert len(runs()) == 14
    assert runs() == set()
    (world.folder / "out" / "pictures" / "fog-ip-0.6-seed0.png").unlink()
    assert runs("--draws", "0") == {"fog-ip-0.6-seed0.png"}
    assert {name.partition("-")[2] for name in runs("--seeds", "0,1")} == {"dp-0.6-seed1.png", "ip-0.6-seed1.png"}
    assert {name.partition("-")[2] for name in runs("--scale", "0.6,1")} == {"dp-1-seed0.png", "ip-1-seed0.png"}
    rows = [*CONDITIONS, {"name": "new", "perceptual_image": "b.png", "semantic_text": "a house"}]
    write_conditions(world.conditions, rows)
    assert runs() == {"new-dp-0.6-seed0.png", "new-ip-0.6-seed0.png"}


def test_what_another_setting_engine_or_image_made_is_made_again(world: World, runs: Callable[..., set[str]]) -> None:
    assert len(runs()) == 14
    assert len(runs("--steps", "3")) == 14
    assert len(runs("--steps", "3", "--negative", "blurry")) == 14
    write_generator(world.engine, zero_negative=True)
    assert len(runs("--steps", "3", "--negative", "blurry")) == 14
    save_picture(world.folder / "sub/c.png", 9)
    expected = {f"{name}-{method}-0.6-seed0.png" for name in ("dusk", "lamp") for method in ("dp", "ip")}
    assert runs("--steps", "3", "--negative", "blurry") == expected


def test_an_interrupt_keeps_what_was_generated(world: World, monkeypatch: Any, capfd: Any) -> None:
    save, saved = job_runner.save, []

    def interrupted(picture: Any, path: Path) -> Path:
        saved.append(save(picture, path))
        if len(saved) == 5:
            raise KeyboardInterrupt
        return saved[-1]

    monkeypatch.setattr(job_runner, "save", interrupted)
    folder = world.folder / "out"
    assert run(world.arguments("-o", folder)) == 130
    assert f"what was generated is kept in {folder / 'pictures'}; the same command goes on" in capfd.readouterr().err
    assert not (folder / "results.md").exists()
    monkeypatch.undo()
    assert run(world.arguments("-o", folder)) == 0
    assert "declip: 9 pictures generated" in capfd.readouterr().err


def test_sheets_of_a_longer_run_before_are_removed(world: World, runs: Callable[..., set[str]]) -> None:
    folder = world.folder / "out"
    folder.mkdir()
    for name in ("sheet-9.jpg", "sheet-mine.jpg"):
        (folder / name).touch()
    runs()
    assert {p.name for p in folder.glob("*.jpg")} == {"sheet-1.jpg", "sheet-mine.jpg"}


# --- what fails


def test_a_picture_that_fails_leaves_its_pair_out_and_is_named(world: World, monkeypatch: Any, capfd: Any) -> None:
    generate = adapter.DPAdapter.generate

    def failing(self: Any, prompt: str = "", **options: Any) -> Any:
        if prompt == "two lamps" and "image" in options:
            raise BackendExecutionError("the UNet gave values that are no numbers. Use precision='fp32'.")
        return generate(self, prompt, **options)

    monkeypatch.setattr(adapter.DPAdapter, "generate", failing)
    folder = world.folder / "out"
    assert run(world.arguments("-o", folder)) == 1
    said = capfd.readouterr().err
    assert "declip: dusk-ip-0.6-seed0.png: the UNet gave values that are no numbers" in said
    assert "declip: 1 of 14 pictures failed" in said
    (failed,) = [line for line in _lines(folder) if line["error"]]
    assert (failed["name"], failed["method"], failed["sc"]) == ("dusk", IP, None)
    rows = [row for row in csv.DictReader((folder / "results.csv").open()) if row["control"] == CONTROLS[0]]
    assert {row["conditions"] for row in rows} == {"2"}
    assert "| dusk-ip-0.6-seed0.png | the UNet gave" in (folder / "results.md").read_text()
    monkeypatch.undo()
    assert run(world.arguments("-o", folder)) == 0  # it is tried again
    assert "declip: 1 picture generated" in capfd.readouterr().err


def test_nothing_that_could_be_measured_is_an_error(world: World, monkeypatch: Any, capfd: Any) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise BackendExecutionError("no memory. Buy some.")

    monkeypatch.setattr(adapter.DPAdapter, "generate", failing)
    assert run(world.arguments("-o", world.folder / "out")) == 2
    assert "no condition has a picture by both methods that could be measured: no memory." in capfd.readouterr().err


def _fails(world: World, capfd: Any, *more: str | Path, without: str | None = None) -> str:
    """The one line that the command says of what is wrong with its arguments; it has generated nothing."""
    arguments = world.arguments("-o", world.folder / "out", *more)
    assert run(arguments) == 2
    assert not list((world.folder / "out").glob("pictures/*.png"))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("declip: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--scale", "nan"], "'nan' is not numbers with commas between, as 0.4,0.7,1."),
        (["--scale", "0.5,"], "'0.5,' is not numbers with commas between"),
        (["--seeds", "0.5"], "'0.5' is not numbers with commas between, as 0,1,2."),
        (["--scale", "0.5,0.50"], "the strength 0.5 stands there twice"),
        (["--scale=-1"], "the strength -1.0 cannot work. Give numbers of 0 or more"),
        (["--seeds", "1,1"], "the seed 1 stands there twice"),
        (["--seeds=-1"], "seed=-1 cannot work"),
        (["--width", "100"], "width=100 cannot work: this engine takes multiples of 64"),
        (["--scheduler", "best"], "scheduler='best' is unknown. Use one of: "),
        (["--guidance", "nan"], "guidance=nan cannot work"),
        (["--steps", "101"], "steps=101 is more than the 100"),
        (["--score", "beauty"], "has no score 'beauty'. It gives: quality"),
        (["--judge-device", "abacus"], "there is no device 'abacus'"),
        (["--backend", "abacus"], "--backend 'abacus' is unknown"),
    ],
)
def test_options_that_cannot_work(world: World, capfd: Any, options: list[str], reason: str) -> None:
    assert _fails(world, capfd, *options).count(reason) == 1  # and not once for each condition


def test_bad_lines_are_all_named_before_anything_runs(world: World, capfd: Any) -> None:
    rows: list[Any] = [dict(row) for row in CONDITIONS]
    rows[1]["perceptual_image"] = "gone.png"
    rows[4]["colour"] = "red"
    write_conditions(world.conditions, rows)
    said = _fails(world, capfd)
    assert "2 of the lines in" in said
    assert "line 2: " in said
    assert "gone.png' does not exist" in said
    assert "line 5: 'colour' is no column" in said
    assert not (world.folder / "out").exists()


def test_conditions_that_the_engine_does_not_take_are_named(world: World, capfd: Any) -> None:
    write_generator(world.engine, conditions=Range(1, 1, 1))
    said = _fails(world, capfd)
    assert "this engine cannot generate by all of the conditions." in said
    assert "line 7: this engine takes 1 of the conditions perceptual, semantic, image at once, 2 were given" in said


def test_engines_of_the_wrong_kind(world: World, capfd: Any) -> None:
    arguments = world.arguments("-o", world.folder / "out")
    arguments[1] = str(TINY)
    assert run(arguments) == 2
    assert "scores photos and generates none" in capfd.readouterr().err
    assert "generates pictures and scores none" in _fails(world, capfd, "--scorer", world.engine)


def test_a_judge_that_does_not_fit(world: World, tmp_path: Path, capfd: Any) -> None:
    config = json.loads(world.tower.read_text())
    config["vision_cfg"]["layers"] = 1
    (tmp_path / "other.json").write_text(json.dumps(config))
    assert "trained on tiny-judge (random); other with" in _fails(world, capfd, "--tower", tmp_path / "other.json")
    write_checkpoint(world.checkpoint, world.tower, nan=True)
    assert "is no direction: it has NaN" in _fails(world, capfd)
    world.checkpoint.write_bytes(b"nothing")
    assert "cannot be read as projectors" in _fails(world, capfd)


def test_an_output_that_is_a_file_or_holds_other_pictures(world: World, capfd: Any) -> None:
    (world.folder / "out" / "pictures").mkdir(parents=True)
    save_picture(world.folder / "out" / "pictures" / "dog-dp-0.6-seed0.png", 0)
    assert run(world.arguments("-o", world.folder / "out")) == 2
    assert "dog-dp-0.6-seed0.png is there already and is no picture of a job" in capfd.readouterr().err
    assert run(world.arguments("-o", world.conditions)) == 2
    assert "conditions.jsonl is a file. Name a folder with -o." in capfd.readouterr().err


def test_a_judge_that_steered_too_is_told(world: World) -> None:
    checkpoint = write_checkpoint(world.checkpoint, world.tower)
    write_generator(world.engine, provenance={"projector_sha256": checkpoint.sha256})
    assert run(world.arguments("-o", world.folder / "out")) == 0
    page = (world.folder / "out" / "results.md").read_text()
    assert "The judge has the projectors that steered DP-Adapter, so SC, PC and leak favour it." in page


# --- its page in docs

PAGE = (Path(__file__).parents[2] / "docs" / "generation_evaluation.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_are_ones_that_there_are() -> None:
    blocks = re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    verbs = [command[1:] for command in commands if command[0] == "declip"]
    assert [verb[0] for verb in verbs].count("evaluate-generation") == 3
    for verb, *arguments in verbs:
        command = declip.get_command(click.Context(declip), verb)
        assert command is not None
        command.make_context(verb, arguments)  # raises for options that there are not, and for lacking ones


def test_the_conditions_of_the_page_are_some(tmp_path: Path) -> None:
    from declip_training.evaluation.generation.conditions import read_conditions

    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(("night", "dog")):
        save_picture(tmp_path / "photos" / f"{name}.jpg", seed)
    (tmp_path / "c.jsonl").write_text(block)
    assert tuple(c.control for c in read_conditions(tmp_path / "c.jsonl")) == CONTROLS


def test_pictures_may_be_judged_twice(world: World, runs: Callable[..., set[str]]) -> None:
    """As the page says: those of another folder are not made again."""
    assert len(runs()) == 14
    shutil.copytree(world.folder / "out" / "pictures", world.folder / "second" / "pictures")
    write_checkpoint(world.checkpoint, world.tower, seed=5)
    shutil.move(world.folder / "out", world.folder / "first")
    shutil.move(world.folder / "second", world.folder / "out")
    assert runs() == set()
    assert [x["of"] for x in _lines(world.folder / "first")] == [x["of"] for x in _lines(world.folder / "out")]
    assert [x["sc"] for x in _lines(world.folder / "first")] != [x["sc"] for x in _lines(world.folder / "out")]
