"""DPAdapter: the wiring of engine, backends and sampler, and every mistake that a user can make."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import queue
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from PIL import Image

from declip_runtime import backends
from declip_runtime.backends import Choice
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import (
    BackendUnavailableError,
    DeviceMemoryError,
    EngineCorruptError,
    EngineNotFoundError,
    GenerationCancelled,
    ImageDecodeError,
    ImageNotFoundError,
    InvalidArrayError,
    PrecisionError,
    PromptWarning,
    ScorerStateError,
    UsageError,
)
from declip_runtime.generation import memory
from declip_runtime.generation import models as models_module
from declip_runtime.generation.adapter import DPAdapter
from declip_runtime.generation.progress import Step
from declip_runtime.generator_manifest import TextInput
from declip_runtime.signature import Range
from runtime import tiny_engine

from . import tiny_adapter
from .against_diffusers import close, theirs
from .tiny_models import Models

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning:diffusers")

Picture = Callable[[int], Image.Image]


def same(first: list[Image.Image], second: list[Image.Image]) -> bool:
    return [np.asarray(p).tolist() for p in first] == [np.asarray(p).tolist() for p in second]


# --- what it gives


def test_pictures_are_those_of_diffusers(
    engine: EngineFile, sd: Models, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_adapter.with_torch(monkeypatch, sd)
    with DPAdapter(engine.path, backend="fake") as adapter:
        assert loaded == []
        found = adapter.generate("a red house", perceptual=picture(1), perceptual_scale=0.5, seed=3, scheduler="ddim")
        assert sorted(loaded) == sorted(tiny_adapter.WEIGHTS)
        adapter.generate("a dog", seed=3)
        assert len(loaded) == 5  # once each
    wanted = theirs(sd, [3], {"perceptual": [picture(1)]}, [0.5], prompt="a red house", scheduler="ddim")
    close(np.stack([np.asarray(p, np.float32) / 255 for p in found]), np.round(wanted * 255) / 255)


def test_text_alone_needs_no_image_models(engine: EngineFile, sd: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_adapter.with_torch(monkeypatch, sd)
    DPAdapter(engine.path, backend="fake").generate("a dog")
    assert sorted(loaded) == ["text_encoder", "unet", "vae_decoder"]


def test_images_may_come_in_every_form(adapter: DPAdapter, picture: Picture, tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    picture(1).save(path)
    forms: list[Any] = [path, str(path), path.read_bytes(), path.open("rb"), picture(1), np.asarray(picture(1)), [path]]
    first, *others = [adapter.generate("a dog", semantic=form, seed=1) for form in forms]
    assert all(same(first, other) for other in others)
    assert not same(first, adapter.generate("a dog", perceptual=path, seed=1))
    assert not same(first, adapter.generate("a dog", semantic=[path, path, picture(2)], seed=1))


def test_one_picture_for_each_prompt_and_number(adapter: DPAdapter) -> None:
    found = adapter.generate(["a dog", "a house"], images_per_prompt=2, seed=5, width=64, height=48)
    records = [json.loads(p.info["declip"]) for p in found]
    assert [p.size for p in found] == [(64, 48)] * 4
    assert [p.mode for p in found] == ["RGB"] * 4
    assert [r["prompt"] for r in records] == ["a dog"] * 2 + ["a house"] * 2
    assert [r["seed"] for r in records] == [5, 6, 7, 8]


def test_without_a_seed_one_is_drawn_and_told(adapter: DPAdapter) -> None:
    first, second = adapter.generate("a dog"), adapter.generate("a dog")
    assert not same(first, second)
    assert same(first, adapter.generate("a dog", seed=json.loads(first[0].info["declip"])["seed"]))


def test_numbers_of_numpy_are_numbers(adapter: DPAdapter, picture: Picture) -> None:
    plain = adapter.generate("a dog", image=picture(1), image_scale=0.5, guidance=2.0, steps=2, seed=3)
    for seed in (np.int64(3), np.array(3), np.array([3])):
        found = adapter.generate(
            "a dog", image=picture(1), image_scale=np.float32(0.5), guidance=np.float64(2), steps=2, seed=seed
        )
        assert same(plain, found)


def test_what_it_says_of_itself(adapter: DPAdapter, engine: EngineFile) -> None:
    assert (adapter.backend, adapter.device, adapter.precision, adapter.batch_size) == ("fake", "cpu", "fp32", 2)
    assert adapter.identity == {"engine": engine.id, "backend": "fake", "precision": "fp32", "preprocessing": 1}
    assert adapter.manifest == engine.manifest
    assert adapter.engine.path == engine.path
    assert repr(adapter) == (
        f"DPAdapter(engine='tiny-sd' ({engine.id[:8]}), backend='fake', device='cpu', precision='fp32')"
    )


# --- one at a time, and the end of it


def test_threads_take_turns(adapter: DPAdapter) -> None:
    running: list[int] = []
    most: list[int] = []

    def watch(step: Step) -> None:
        if step.index == 0:
            running.append(1)
        most.append(len(running))
        if step.index == step.steps - 1:
            running.pop()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: adapter.generate("a dog", seed=seed, on_step=watch), [1, 2, 1, 2]))
    assert max(most) == 1
    assert same(found[0], found[2])
    assert same(found[1], found[3])
    assert not same(found[0], found[1])


def test_another_thread_can_stop_it(adapter: DPAdapter) -> None:
    stopping: list[threading.Thread] = []

    def watch(step: Step) -> None:
        if step.index == 0:
            stopping.append(threading.Thread(target=step.cancel))
            stopping[0].start()
        stopping[0].join()

    with pytest.raises(GenerationCancelled):
        adapter.generate("a dog", on_step=watch)
    assert len(adapter.generate("a dog")) == 1  # it goes on


def test_a_closed_adapter_says_so(engine: EngineFile) -> None:
    adapter = DPAdapter(engine.path, backend="fake")
    adapter.generate("a dog")
    adapter.close()
    adapter.close()
    assert repr(adapter) == "DPAdapter(closed)"
    with pytest.raises(ScorerStateError, match=r"closed\. Make a new DPAdapter"):
        adapter.generate("a dog")
    with pytest.raises(ScorerStateError), adapter:
        pass


def test_close_waits_for_the_generation_that_runs(engine: EngineFile) -> None:
    adapter = DPAdapter(engine.path, backend="fake")
    closing = threading.Thread(target=adapter.close)

    def watch(step: Step) -> None:
        if step.index == 0:
            closing.start()
        closing.join(0.05)
        assert closing.is_alive()

    assert len(adapter.generate("a dog", on_step=watch)) == 1
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(ScorerStateError):
        adapter.generate("a dog")


@pytest.mark.parametrize("call", ["close", "generate"])
def test_on_step_that_uses_its_own_adapter_is_told_and_not_stuck(adapter: DPAdapter, call: str) -> None:
    with pytest.raises(ScorerStateError, match=r"within its own on_step\. Call step\.cancel"):
        adapter.generate("a dog", on_step=lambda _: getattr(adapter, call)())
    assert len(adapter.generate("a dog")) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork of POSIX")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told(adapter: DPAdapter) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        try:
            adapter.generate("a dog")
        except ScorerStateError as error:
            answers.put(str(error))

    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert "'spawn'" in answers.get()


# --- what a user can get wrong, all of it before a model is loaded


def refuse_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(backends, "choose", choose)


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no multiple": ({"width": 500}, UsageError, r"width=500 .* multiples of 16 from 16 to 64\. Use 64\."),
    "between two": ({"height": 40}, UsageError, r"height=40 .* Use 32 or 48\."),
    "too small": ({"height": 8}, UsageError, r"height=8 .* Use 16\."),
    "no size": ({"width": 0}, UsageError, r"width=0 .* whole number"),
    "size of text": ({"width": "32"}, UsageError, r"width='32' .* whole number"),
    "scheduler": ({"scheduler": "magic"}, UsageError, r"scheduler='magic' is unknown\. Use one of: ddim, .*dpm\+\+"),
    "scheduler of a list": ({"scheduler": ["ddim"]}, UsageError, r"scheduler=\['ddim'\] is unknown"),
    "steps": ({"steps": 0}, UsageError, r"steps=0 .* whole number"),
    "steps of lcm": ({"steps": 60, "scheduler": "lcm"}, UsageError, r"lcm cannot run 60 steps .* Choose other steps"),
    "steps of all": ({"steps": 1001}, UsageError, r"steps=1001 is more than the 1000 this model"),
    "guidance": ({"guidance": -1}, UsageError, r"guidance=-1 cannot work"),
    "guidance of text": ({"guidance": "7"}, UsageError, r"guidance='7' cannot work"),
    "guidance without end": ({"guidance": float("inf")}, UsageError, r"guidance=inf cannot work"),
    "guidance of nothing": ({"guidance": float("nan")}, UsageError, r"guidance=nan cannot work"),
    "guidance without meaning": ({"guidance": 1e39}, UsageError, r"guidance=1e\+39 cannot work"),
    "guidance of many digits": ({"guidance": 10**400}, UsageError, r"guidance=1000\d+\.\.\. cannot work"),
    "guidance of too many digits": ({"guidance": 10**5000}, UsageError, r"guidance=<int> cannot work"),
    "scale without meaning": ({"image": "a.png", "image_scale": 1e39}, UsageError, r"image_scale is 1e\+39\."),
    "scale of many digits": ({"image": "a.png", "image_scale": 10**400}, UsageError, r"image_scale is 1000"),
    "scale of a block without meaning": (
        {"image": "a.png", "image_scale": {"up": -(10**400)}}, UsageError, r"image_scale for up\.block_\d is -1000",
    ),
    "steps of many digits": ({"steps": 10**5000}, UsageError, r"steps=<int> cannot work.* 1 to 10,000"),
    "width of many digits": ({"width": 10**5000}, UsageError, r"width=<int> cannot work"),
    "too many pictures": ({"images_per_prompt": 2 * 10**9}, UsageError, r"images_per_prompt=2000000000 cannot work"),
    "too many pictures of prompts": (
        {"prompt": ["a"] * 11, "images_per_prompt": 1000}, UsageError, r"images_per_prompt=1000 .* 1 to 909\.",
    ),
    "too many seeds": ({"seed": range(10**12)}, UsageError, r"1000000000000 seeds were given for 1 pictures"),
    "seed of many digits": ({"seed": 10**5000}, UsageError, r"seed=<int> cannot work"),
    "rows of seeds": ({"seed": np.zeros((1, 2), int)}, UsageError, r"seed=array\(\[0, 0\]\) cannot work"),
    "seed": ({"seed": -1}, UsageError, r"seed=-1 .* 0 to 9223372036854775807"),
    "seed of a fraction": ({"seed": 1.5}, UsageError, r"seed=1\.5 "),
    "seed of text": ({"seed": "1"}, UsageError, r"seed='1' "),
    "seed of truth": ({"seed": True}, UsageError, r"seed=True "),
    "last seed": ({"seed": 2**63 - 1, "images_per_prompt": 2}, UsageError, r"seed=9223372036854775808"),
    "seeds": ({"seed": [1, 2]}, UsageError, r"2 seeds were given for 1 pictures"),
    "pictures": ({"images_per_prompt": 0}, UsageError, r"images_per_prompt=0"),
    "prompt": ({"prompt": 5}, UsageError, r"prompt is int\. Give text"),
    "prompts": ({"prompt": []}, UsageError, r"prompt is an empty list"),
    "prompt of bytes": ({"prompt": b"a dog"}, UsageError, r"prompt is bytes"),
    "one of the prompts": ({"prompt": ["a", None]}, UsageError, r"prompt holds NoneType"),
    "half a character": ({"prompt": "\ud83d"}, UsageError, r"half a character"),
    "negatives": ({"negative_prompt": ["a", "b"]}, UsageError, r"1 prompts and 2 negative prompts"),
    "scale": ({"perceptual": "a.png", "perceptual_scale": "x"}, UsageError, r"perceptual_scale is 'x'"),
    "scale of a block": (
        {"image": "a.png", "image_scale": {"up": {"block_9": 1}}}, UsageError,
        r"image_scale names 'block_9'.*up\.block_1",
    ),
    "no image": ({"semantic": []}, UsageError, r"semantic holds no image"),
    "too many images": ({"semantic": ["a.png"] * 7}, UsageError, r"up to 6 reference images .*semantic: 7"),
    "too many together": (
        {"semantic": ["a.png"] * 3, "image": ["a.png"] * 4}, UsageError,
        r"least common multiple .*semantic: 3, image: 4",
    ),
    "missing image": ({"semantic": "nowhere.png"}, ImageNotFoundError, r"'nowhere\.png' does not exist"),
    "one missing image": ({"image": ["a.png", "nowhere.png"]}, ImageNotFoundError, r"'nowhere\.png'"),
    "no picture": ({"perceptual": b"hello"}, ImageDecodeError, r"not an image"),
    "no picture at all": ({"perceptual": 5}, UsageError, r"<int> is no image"),
    "an array of floats": ({"perceptual": np.zeros((4, 4, 3))}, InvalidArrayError, r"wanted is uint8"),
    "on_step": ({"on_step": "print"}, UsageError, r"on_step is str"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_is_told_before_anything_is_loaded(
    adapter: DPAdapter, mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_models(monkeypatch)
    monkeypatch.chdir(folder)
    arguments, error, told = MISTAKES[mistake]
    with pytest.raises(error, match=told):
        adapter.generate(**{"prompt": "a dog", **arguments})


def test_a_negative_prompt_without_guidance_is_warned_of(adapter: DPAdapter) -> None:
    with pytest.warns(PromptWarning, match=r"no effect with guidance=1\. Choose") as caught:
        adapter.generate("a dog", negative_prompt="blurry", guidance=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptWarning)
        adapter.generate("a dog", negative_prompt="blurry", guidance=1.5)
        adapter.generate("a dog", guidance=1)


def test_an_engine_for_one_size_names_it(tmp_path: Path, sd: Models) -> None:
    components = dict(sd.manifest.components)
    for name in ("unet", "vae_decoder"):
        fixed = {"height": Range(13, 13, 13), "width": Range(16, 16, 16)}
        components[name] = replace(components[name], free={**components[name].free, **fixed})
    manifest = replace(sd.manifest, components=components, height=26)
    engine = tiny_adapter.write(tmp_path / "fixed.engine", replace(sd, manifest=manifest))
    with DPAdapter(engine.path, backend="fake") as adapter:
        assert adapter.generate("a dog")[0].size == (32, 26)
        assert adapter.generate("a dog", width=32, height=26)[0].size == (32, 26)
        with pytest.raises(UsageError, match=r"width=64 was asked for, and this engine is made for width=32 only"):
            adapter.generate("a dog", width=64)


def test_an_engine_without_a_projector_names_what_it_has(tmp_path: Path, sd: Models) -> None:
    encoder = sd.manifest.components["image_encoder"]
    plain = replace(encoder, outputs={"identity": encoder.outputs["identity"]})
    manifest = replace(sd.manifest, components={**sd.manifest.components, "image_encoder": plain})
    engine = tiny_adapter.write(tmp_path / "plain.engine", replace(sd, manifest=manifest))
    with DPAdapter(engine.path, backend="fake") as adapter, pytest.raises(UsageError, match=r"only identity"):
        adapter.generate("a dog", perceptual="a.png")


def test_an_engine_for_one_condition_takes_no_two(tmp_path: Path, sd: Models) -> None:
    unet = sd.manifest.components["unet"]
    one = replace(unet, free={**unet.free, "conditions": Range(1, 1, 1)})
    manifest = replace(sd.manifest, components={**sd.manifest.components, "unet": one})
    engine = tiny_adapter.write(tmp_path / "one.engine", replace(sd, manifest=manifest))
    with (
        DPAdapter(engine.path, backend="fake") as adapter,
        pytest.raises(UsageError, match=r"takes 1 of the conditions"),
    ):
        adapter.generate("a dog", perceptual="a.png", semantic="b.png")


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"engine": None}, UsageError, r"no engine was given"),
        ({"engine": ""}, UsageError, r"engine is empty"),
        ({"engine": "nowhere.engine"}, EngineNotFoundError, r"no engine at"),
        ({"backend": "magic"}, BackendUnavailableError, r"backend='magic' is unknown"),
        ({"device": "cuda:7"}, BackendUnavailableError, r"no device 'cuda:7'"),
        ({"precision": "fp64"}, UsageError, r"precision='fp64' is unknown"),
        ({"threads": 0}, UsageError, r"threads=0"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_told(
    engine: EngineFile, arguments: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        DPAdapter(**{"engine": engine.path, "backend": "fake", **arguments})


def refusing(monkeypatch: pytest.MonkeyPatch, refused: dict[tuple[str, str], Exception]) -> None:
    """Let every backend of "auto" run every component but those that are ``refused``."""

    def resolve(_: EngineFile, backend: str = "auto", *, component: str = "", **__: Any) -> Choice:
        for name in backends.AUTO if backend == "auto" else (backend,):
            if (name, component) not in refused:
                return Choice(name, "cpu", "fp32")
            if backend != "auto":
                raise refused[name, component]
        raise BackendUnavailableError("no backend runs it. Install one.")

    monkeypatch.setattr(backends, "resolve", resolve)


def test_auto_is_the_first_backend_that_runs_every_component(
    engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, second, third = backends.AUTO
    missing = BackendUnavailableError("no plan of it here. Build one.")
    refusing(monkeypatch, {})
    assert DPAdapter(engine.path).backend == best
    refusing(monkeypatch, {(best, "unet"): missing, (second, "image_tokens"): missing})
    assert DPAdapter(engine.path).backend == third
    refusing(monkeypatch, {(best, "text_encoder"): missing, (second, "unet"): PrecisionError("no fp16. Use fp32.")})
    assert DPAdapter(engine.path).backend == third
    refusing(monkeypatch, {(name, "image_encoder"): missing for name in backends.AUTO})
    with pytest.raises(BackendUnavailableError, match=r"(no plan of it here\. Build one\. ?){3}"):
        DPAdapter(engine.path)


@pytest.mark.parametrize("component", ["image_encoder", "text_encoder", "vae_decoder"])
@pytest.mark.parametrize(
    "error", [PrecisionError("no fp16. Use fp32."), BackendUnavailableError("no plan. Build one.")]
)
def test_a_backend_that_lacks_a_component_is_told_when_the_adapter_is_made(
    engine: EngineFile, component: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, {("openvino", component): error})
    with pytest.raises(type(error)):
        DPAdapter(engine.path, backend="openvino")


def test_an_engine_that_lacks_a_precision_is_no_reason_to_try_the_next(
    engine: EngineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, {(backends.AUTO[0], "vae_decoder"): PrecisionError("no fp16. Use fp32.")})
    with pytest.raises(PrecisionError):
        DPAdapter(engine.path)


# --- what is wrong with an engine


def engine_with(tmp_path: Path, sd: Models, **scheduler: Any) -> Path:
    manifest = replace(sd.manifest, scheduler={**sd.manifest.scheduler, **scheduler})
    return tiny_adapter.write(tmp_path / "other.engine", replace(sd, manifest=manifest)).path


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (
            {"_class_name": "SchedulerMixin"},
            r"own scheduler, 'SchedulerMixin', is none that is run here\. Choose .*ddim",
        ),
        ({"_class_name": "__name__"}, r"own scheduler, '__name__', is none"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"own scheduler, 'FlowMatchEuler\w+', is none"),
        ({"num_train_timesteps": 10**13}, r"has num_train_timesteps=10000000000000\. Export the engine again"),
        ({"_class_name": "DEISMultistepScheduler", "solver_order": 10**9}, r"has solver_order=1000000000\."),
        ({"_class_name": "DDIMScheduler", "prediction_type": "magic"}, r"DDIMScheduler cannot run 4 steps .*magic"),
        ({"beta_schedule": "magic"}, r"PNDMScheduler cannot run 4 steps with this engine .* Choose other steps"),
        ({"beta_start": "small"}, r"PNDMScheduler cannot run 4 steps"),
        ({"num_train_timesteps": "many"}, r"PNDMScheduler cannot run 4 steps"),
    ],
    ids=str,
)
def test_a_scheduler_that_cannot_be_is_told_before_anything_is_loaded(
    sd: Models, scheduler: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_models(monkeypatch)
    with DPAdapter(engine_with(tmp_path, sd, **scheduler), backend="fake") as adapter:
        with pytest.raises(UsageError, match=told):
            adapter.generate("a dog")
        if "_class_name" in scheduler and len(scheduler) == 1:  # another one may be chosen
            monkeypatch.undo()
            assert len(adapter.generate("a dog", scheduler="ddim")) == 1


def test_what_a_configuration_says_beside_is_not_talked_of(sd: Models, tmp_path: Path) -> None:
    logger, said = logging.getLogger("diffusers"), queue.SimpleQueue[logging.LogRecord]()
    handler, level = QueueHandler(said), logger.level  # type: ignore[arg-type]
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        with DPAdapter(engine_with(tmp_path, sd, magic=5), backend="fake") as adapter:
            adapter.generate("a dog", scheduler="euler")
            adapter.generate("a dog")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said.empty()


def test_a_tokenizer_that_lacks_a_word_is_told_before_anything_is_loaded(
    sd: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_models(monkeypatch)
    words: Any = tokenizers.Tokenizer(tokenizers.models.WordLevel({"dog": 0}, unk_token="<unk>"))
    entry = sd.manifest.text_inputs["input_ids"].entry
    text_inputs = {"input_ids": TextInput(entry, 0)}
    models = replace(sd, manifest=replace(sd.manifest, text_inputs=text_inputs), files={entry: words.to_str().encode()})
    engine = tiny_adapter.write(tmp_path / "words.engine", models)
    with (
        DPAdapter(engine.path, backend="fake") as adapter,
        pytest.raises(EngineCorruptError, match=r"cannot encode a prompt \(.*\)\. Use other words"),
    ):
        adapter.generate("dog", negative_prompt="house")


def test_an_engine_that_scores_is_told(tmp_path: Path) -> None:
    scorer = tiny_engine.write(tmp_path / "scorer.engine")
    with pytest.raises(UsageError, match="scores photos and generates none"):
        DPAdapter(scorer.path)


def test_models_that_do_not_fit_into_memory_are_not_loaded(
    engine: EngineFile, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_models(monkeypatch)
    adapter = DPAdapter(engine.path, backend="fake")
    # As if it were a backend that loads weights. The fake one is all that runs everywhere.
    real = property(lambda models: replace(models._choices["unet"], backend="openvino"))
    monkeypatch.setattr(models_module.Models, "unet", real)
    for free, images in ((67_999, None), (79_999, picture(1))):
        monkeypatch.setattr(memory, "available_memory", lambda _, free=free: free)
        with pytest.raises(DeviceMemoryError, match=r"unet 0\.0 GB.* are free\. Close other programs"):
            adapter.generate("a dog", image=images)
    monkeypatch.setattr(memory, "available_memory", lambda _: 80_000)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        adapter.generate("a dog", image=picture(1))
