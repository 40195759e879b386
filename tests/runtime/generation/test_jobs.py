"""Many generations from a file: read as a whole, run into a folder, and on from where they stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import BackendExecutionError, GenerationCancelled, UsageError
from declip_runtime.generation import job_runner
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.job_runner import Outcome, run_jobs
from declip_runtime.generation.jobs import Job, read_jobs
from declip_runtime.generation.progress import Step
from declip_runtime.generation.record import read_record, save

Picture = Callable[[int], Image.Image]


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def read(path: Path, adapter: DPAdapter, **defaults: Any) -> list[Job]:
    return read_jobs(path, adapter.manifest, adapter.identity, defaults)


def run(path: Path, adapter: DPAdapter, out: Path, **defaults: Any) -> list[Outcome]:
    return list(run_jobs(read(path, adapter, **defaults), adapter, out))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".declip-lock")


# --- reading


def test_a_job_has_the_arguments_of_generate(adapter: DPAdapter, folder: Path) -> None:
    path = write(
        folder,
        {"prompt": "a dog", "seed": 5, "perceptual": "a.png", "perceptual_scale": {"up": 1}, "steps": 3, "name": "dog"},
        "",
        {"prompt": "a house", "negative_prompt": "blurry", "semantic": ["a.png", "b.png"], "images_per_prompt": 3},
    )
    first, second = read(path, adapter, steps=7, guidance=2)
    assert (first.line, first.name, first.files, first.seeds) == (1, "dog", ("dog.png",), (5,))
    assert first.arguments == {
        "prompt": "a dog", "perceptual": [str(folder / "a.png")], "perceptual_scale": {"up": 1}, "steps": 3,
        "guidance": 2,
    }  # fmt: skip
    assert (second.line, second.name, second.files) == (3, "00003", ("00003-1.png", "00003-2.png", "00003-3.png"))
    assert second.arguments["steps"] == 7
    assert second.arguments["semantic"] == [str(folder / "a.png"), str(folder / "b.png")]


def test_a_job_without_a_seed_keeps_the_one_it_gets(adapter: DPAdapter, folder: Path) -> None:
    lines = [{"prompt": "a dog"}, {"prompt": "a dog"}, {"prompt": "a dog", "name": "x"}, {"prompt": "a house"}]
    first = [job.seeds for job in read(write(folder, *lines), adapter)]
    assert len(set(first)) == 4
    assert [job.seeds for job in read(write(folder, {"prompt": "new"}, *lines), adapter)][1:] == first


def test_names_sort_as_the_lines_do(adapter: DPAdapter, folder: Path) -> None:
    jobs = read(write(folder, *[{"prompt": "a"}] * 10, {"prompt": "b", "images_per_prompt": 10}), adapter)
    assert [job.files[0] for job in jobs[:2]] == ["00001.png", "00002.png"]
    assert jobs[-1].files[::9] == ("00011-01.png", "00011-10.png")


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{prompt: 5}", "it is not JSON"),
    "two objects": ('{"prompt": "a"} {"prompt": "b"}', "it is not JSON"),
    "a list": (["a dog"], "it is no object"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "a key stands there twice"),
    "no number": ('{"prompt": "a", "guidance": NaN}', "NaN is no number"),
    "a misspelt key": ({"promt": "a dog"}, r"'promt' is no argument\. Use name, prompt, negative_prompt, perceptual,"),
    "on_step": ({"on_step": "x"}, "'on_step' is no argument"),
    "two prompts": ({"prompt": ["a", "b"]}, "a job has one prompt"),
    "a number as prompt": ({"prompt": 5}, "a job has one prompt"),
    "a size": ({"width": 50}, "multiples of 16"),
    "a size as text": ({"width": "48"}, "width='48'"),
    "a seed": ({"seed": -5}, "seed=-5"),
    "a long number": ('{"guidance": 1' + "0" * 400 + "}", "guidance=1000"),
    "a longer number": ('{"guidance": 1' + "0" * 5000 + "}", "it is not JSON"),
    "a long scale": ('{"image": "a.png", "image_scale": 1' + "0" * 400 + "}", "image_scale is 1000"),
    "brackets": ('{"image_scale": ' + "[" * 100_000, "it is not JSON"),
    "seeds": ({"seed": [1, 2], "images_per_prompt": 3}, "2 seeds were given for 3 pictures"),
    "a scale": ({"image": "a.png", "image_scale": {"up": {"block_7": 1}}}, "'block_7'"),
    "steps": ({"steps": 60, "scheduler": "lcm"}, "lcm cannot run 60 steps"),
    "steps as text": ({"steps": "30"}, "steps='30'"),
    "a scheduler": ({"scheduler": "magic"}, "'magic' is unknown"),
    "a missing image": ({"perceptual": "nowhere.png"}, r"nowhere\.png' does not exist"),
    "no image": ({"semantic": "broken.png"}, "not an image"),
    "a path of another type": ({"semantic": 5}, "semantic is 5"),
    "a name with a folder": ({"name": "../x"}, r"the name '\.\./x' cannot become a file"),
    "an empty name": ({"name": ""}, "the name '' cannot"),
    "a name with a dot": ({"name": ".hidden"}, r"the name '\.hidden' cannot"),
    "half a character": ({"name": "\ud83d"}, "cannot become a file"),
    "a long name": ({"name": "写" * 100}, "200 bytes"),
    "a name of another type": ({"name": 5}, "the name 5 cannot"),
}


@pytest.mark.parametrize("bad", list(BAD))
def test_a_bad_line_is_told_with_its_number(adapter: DPAdapter, folder: Path, bad: str) -> None:
    (folder / "broken.png").write_text("hello")
    line, wanted = BAD[bad]
    path = write(folder, {"prompt": "fine"}, line, {"prompt": "fine too"})
    with pytest.raises(UsageError) as caught:
        read(path, adapter)
    first, told = str(caught.value).split("\n")
    assert first == f"1 of the lines in {path} are no job that can run. Correct them:"
    assert told.startswith("line 2: ")
    with pytest.raises(UsageError, match=wanted):
        raise UsageError(told)


@pytest.mark.parametrize(("lines", "last"), [(20, "line 20: "), (21, "and 1 more"), (1500, "and 1,480 more")])
def test_so_many_bad_lines_are_told_as_somebody_reads(adapter: DPAdapter, folder: Path, lines: int, last: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(write(folder, *[{"steps": 0}] * lines), adapter)
    first, *told = str(caught.value).split("\n")
    assert first.startswith(f"{lines} of the lines in ")
    assert [line.partition(":")[0] for line in told[:20]] == [f"line {number}" for number in range(1, 21)]
    assert len(told) == min(lines, 21)
    assert told[-1].startswith(last)


def test_two_jobs_of_one_name_are_told(adapter: DPAdapter, folder: Path) -> None:
    path = write(
        folder, {"name": "dog"}, {"name": "x", "images_per_prompt": 2}, {"name": "DOG"}, {"name": "x-2"}, {"name": "4"}
    )
    with pytest.raises(UsageError) as caught:
        read(path, adapter)
    told = str(caught.value).split("\n")[1:]
    assert [line.partition(". ")[0] for line in told] == [
        "line 3: it would write DOG.png, and so does line 1",
        "line 4: it would write x-2.png, and so does line 2",
    ]


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "holds no job"), (b"\n \n", "holds no job"), (b"\xff\xfe{}", "UTF-8")], ids=str
)
def test_a_file_without_jobs_is_told(adapter: DPAdapter, folder: Path, content: bytes, told: str) -> None:
    (folder / "jobs.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=told):
        read(folder / "jobs.jsonl", adapter)


def test_a_file_that_is_not_there_is_told(adapter: DPAdapter, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.jsonl cannot be read \(No such file or directory\)"):
        read(folder / "nowhere.jsonl", adapter)


def test_a_mark_at_the_beginning_and_windows_lines_do_not_matter(adapter: DPAdapter, folder: Path) -> None:
    (folder / "jobs.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [job.arguments["prompt"] for job in read(folder / "jobs.jsonl", adapter)] == ["a", "b"]


# --- running


def test_pictures_are_those_of_generate(adapter: DPAdapter, folder: Path) -> None:
    path = write(
        folder,
        {"prompt": "a dog", "semantic": "a.png", "images_per_prompt": 5, "seed": 3, "name": "dogs"},
        {"prompt": "a house", "width": 48, "name": "house"},
    )
    dogs, house = run(path, adapter, folder / "out" / "new")
    assert (dogs.made, dogs.error, len(dogs.files), dogs.seconds > 0) == (5, None, 5, True)
    assert names(folder / "out" / "new") == [*(f"dogs-{n}.png" for n in range(1, 6)), "house.png"]
    wanted = adapter.generate("a dog", semantic=folder / "a.png", images_per_prompt=5, seed=3)
    for number, file in enumerate(dogs.files):
        with Image.open(file) as image:
            assert np.asarray(image).tolist() == np.asarray(wanted[number]).tolist()
        assert read_record(file)["seed"] == 3 + number
    with Image.open(house.files[0]) as image:
        assert image.size == (48, 32)


def test_what_is_there_is_not_made_again(adapter: DPAdapter, folder: Path, picture: Picture) -> None:
    lines = [{"prompt": "a dog", "perceptual": "a.png"}, {"prompt": "a house", "images_per_prompt": 3}]
    path, out = write(folder, *lines), folder / "out"
    assert [outcome.made for outcome in run(path, adapter, out)] == [1, 3]
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    again = run(path, adapter, out)
    assert [outcome.made for outcome in again] == [0, 0]
    assert [outcome.there for outcome in again] == [1, 3]
    assert [len(outcome.files) for outcome in again] == [1, 3]
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before

    (out / "00002-2.png").unlink()
    assert [outcome.made for outcome in run(path, adapter, out)] == [0, 1]
    assert (out / "00002-2.png").read_bytes() == before["00002-2.png"][0]

    picture(8).save(folder / "a.png")  # another image under the old name
    assert [outcome.made for outcome in run(path, adapter, out)] == [1, 0]
    assert [outcome.made for outcome in run(path, adapter, out, steps=3)] == [1, 3]
    assert read_record(out / "00001.png")["steps"] == 3


def test_another_engine_makes_its_own(adapter: DPAdapter, folder: Path) -> None:
    path, out = write(folder, {"prompt": "a dog"}), folder / "out"
    run(path, adapter, out)
    jobs = read_jobs(path, adapter.manifest, {**adapter.identity, "engine": "another"})
    assert [outcome.made for outcome in run_jobs(jobs, adapter, out)] == [1]


@pytest.mark.parametrize("content", ["a photo", "a record without a job", "text"])
def test_somebody_elses_file_is_never_replaced(
    adapter: DPAdapter, folder: Path, content: str, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(folder, {"prompt": "a dog"}, {"prompt": "a house"}), folder / "out"
    out.mkdir()
    if content == "text":
        (out / "00002.png").write_text("hello")
    else:
        save(picture(1) if content == "a photo" else adapter.generate()[0], out / "00002.png")
    before = (out / "00002.png").read_bytes()
    jobs = read(path, adapter)
    monkeypatch.setattr(DPAdapter, "generate", lambda *_, **__: pytest.fail("it generated"))
    with pytest.raises(
        UsageError, match=r"00002\.png is there already and is no picture of a job\. Choose another folder"
    ):
        run_jobs(jobs, adapter, out)
    assert (out / "00002.png").read_bytes() == before


def test_a_folder_that_cannot_be_is_told(adapter: DPAdapter, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.png cannot be a folder"):
        run_jobs(read(write(folder, {"prompt": "a dog"}), adapter), adapter, folder / "a.png")


def test_a_folder_is_one_runs(adapter: DPAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would make every picture twice."""
    jobs, out = read(write(folder, {"prompt": "a dog"}, {"prompt": "a house"}), adapter), folder / "out"
    first = run_jobs(jobs, adapter, out)
    next(first)
    with pytest.raises(UsageError, match="out is in use by another run"):
        run_jobs(jobs, adapter, out)
    assert [outcome.made for outcome in run_jobs(jobs, adapter, folder / "other")] == [1, 1]
    assert [outcome.made for outcome in first] == [1]
    assert [outcome.there for outcome in run_jobs(jobs, adapter, out)] == [1, 1]

    def unknown(_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(job_runner, "lock", unknown)
    with pytest.warns(UserWarning, match=r"out cannot be locked \(Operation not supported\)"):
        assert [outcome.there for outcome in run_jobs(jobs, adapter, out)] == [1, 1]


def test_a_job_that_fails_does_not_stop_the_others(
    adapter: DPAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(folder, {"prompt": "a"}, {"prompt": "b", "semantic": "b.png"}, {"prompt": "c"}), folder / "out"
    jobs = read(path, adapter)
    (folder / "b.png").unlink()
    outcomes = list(run_jobs(jobs, adapter, out))
    assert [outcome.made for outcome in outcomes] == [1, 0, 1]
    assert "b.png' does not exist" in str(outcomes[1].error)
    assert names(out) == ["00001.png", "00003.png"]

    generate = DPAdapter.generate

    def failing(self: DPAdapter, prompt: str, **arguments: Any) -> Any:
        if prompt == "c":
            raise BackendExecutionError("the GPU fell off the bus. Run it again.")
        return generate(self, prompt, **arguments)

    monkeypatch.setattr(DPAdapter, "generate", failing)
    outcomes = list(run_jobs(read(write(folder, {"prompt": "c"}, {"prompt": "d"}), adapter), adapter, folder / "next"))
    assert [(outcome.made, type(outcome.error)) for outcome in outcomes] == [
        (0, BackendExecutionError),
        (1, type(None)),
    ]


def test_a_disk_that_is_full_stops_them(adapter: DPAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = read(write(folder, {"prompt": "a"}, {"prompt": "b"}), adapter)
    outcomes = run_jobs(jobs, adapter, folder / "out")
    next(outcomes)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        next(outcomes)
    assert names(folder / "out") == ["00001.png"]


def test_a_stop_leaves_what_is_done_and_the_rest_goes_on(adapter: DPAdapter, folder: Path) -> None:
    jobs = read(write(folder, {"prompt": "a", "images_per_prompt": 5}, {"prompt": "b"}), adapter)
    assert adapter.batch_size == 2
    seen: list[tuple[str, int]] = []

    def watch(job: Job, step: Step) -> None:
        seen.append((job.name, step.index))
        if len(seen) == 7:
            step.cancel()

    with pytest.raises(GenerationCancelled):
        list(run_jobs(jobs, adapter, folder / "out", watch))
    assert seen[0] == ("00001", 0)
    assert names(folder / "out") == ["00001-1.png", "00001-2.png"]
    assert [outcome.made for outcome in run_jobs(jobs, adapter, folder / "out")] == [3, 1]
    wanted = adapter.generate("a", images_per_prompt=5, seed=list(jobs[0].seeds))
    for number in range(5):
        with Image.open(folder / "out" / f"00001-{number + 1}.png") as image:
            assert np.asarray(image).tolist() == np.asarray(wanted[number]).tolist()


KILLED = """
import sys, time
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.job_runner import run_jobs
from declip_runtime.generation.jobs import read_jobs
adapter = DPAdapter(sys.argv[1], backend="fake")
jobs = read_jobs(sys.argv[2], adapter.manifest, adapter.identity)
for outcome in run_jobs(jobs, adapter, sys.argv[3], lambda job, step: time.sleep(0.02)):
    pass
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_a_killed_run_goes_on_where_it_was(engine: EngineFile, adapter: DPAdapter, folder: Path) -> None:
    path, out = write(folder, *({"prompt": f"picture {n}"} for n in range(40))), folder / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(engine.path), str(path), str(out)])
    until = time.monotonic() + 120
    while not (out.is_dir() and len(list(out.glob("*.png"))) >= 3):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = {p.name: p.read_bytes() for p in out.glob("*.png")}
    assert 3 <= len(done) < 40
    outcomes = run(path, adapter, out)
    assert sum(outcome.made for outcome in outcomes) == 40 - len(done)
    assert all(outcome.error is None for outcome in outcomes)
    for name, content in done.items():
        assert (out / name).read_bytes() == content
