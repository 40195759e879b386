"""The whole way from a request to pixels, against diffusers' pipelines with the same adapter loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip_runtime.errors import BackendExecutionError, GenerationCancelled
from declip_runtime.generation.progress import Step
from declip_runtime.generation.request import OUTPUTS
from declip_runtime.generation.sampler import to_image
from declip_runtime.generator_manifest import GeneratorManifest
from declip_runtime.signature import Range

from .against_diffusers import DIFFUSERS, close, ours, theirs
from .tiny_models import Models

Picture = Callable[[int], Image.Image]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning:diffusers")

# --- parity


@pytest.mark.parametrize("scheduler", list(DIFFUSERS), ids=str)
def test_every_scheduler_gives_what_it_gives_diffusers(sd: Models, picture: Picture, scheduler: str | None) -> None:
    guidance = 1.0 if scheduler == "lcm" else 5.0
    found = ours(
        sd, prompt="a red house", perceptual=picture(1), seed=[3, 9], images_per_prompt=2, scheduler=scheduler,
        guidance=guidance,
    )  # fmt: skip
    wanted = theirs(
        sd, [3, 9], {"perceptual": [picture(1)]}, prompt="a red house", num_images_per_prompt=2, scheduler=scheduler,
        guidance=guidance,
    )  # fmt: skip
    close(found, wanted)
    assert np.abs(found[0] - found[1]).max() > 0.05


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++", "lcm"])
def test_xl_with_two_conditions(sdxl: Models, picture: Picture, scheduler: str) -> None:
    scales = [0.8, {"up": {"block_0": [0.0, 1.0, 0.0]}}]
    images = {"perceptual": [picture(1)], "semantic": [picture(2)]}
    found = ours(
        sdxl, prompt="a dog", perceptual=picture(1), semantic=picture(2), perceptual_scale=scales[0],
        semantic_scale=scales[1], seed=5, scheduler=scheduler, width=48, height=32,
    )  # fmt: skip
    wanted = theirs(sdxl, [5], images, scales, prompt="a dog", scheduler=scheduler, width=48, height=32)
    close(found, wanted)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.0])
def test_plain_text_with_and_without_guidance(family: str, guidance: float, request: pytest.FixtureRequest) -> None:
    models: Models = request.getfixturevalue(family)
    close(
        ours(models, prompt="a red house by the sea", seed=1, guidance=guidance),
        theirs(models, [1], prompt="a red house by the sea", guidance=guidance),
    )


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_negative_prompt(family: str, request: pytest.FixtureRequest, picture: Picture) -> None:
    models: Models = request.getfixturevalue(family)
    common = {"prompt": "a red house", "negative_prompt": "blurry photo"}
    found = ours(models, **common, image=picture(4), image_scale=0.6, seed=2)
    close(found, theirs(models, [2], {"image": [picture(4)]}, [0.6], **common))
    assert np.abs(found - ours(models, prompt="a red house", image=picture(4), image_scale=0.6, seed=2)).max() > 0.01


def test_a_batch_of_prompts_each_with_its_negative(sd: Models, picture: Picture) -> None:
    prompts, negatives = ["a red house", "a dog by the sea"], ["blurry photo", "red"]
    found = ours(
        sd, prompt=prompts, negative_prompt=negatives, semantic=picture(1), images_per_prompt=2, seed=[1, 2, 3, 4]
    )
    wanted = theirs(
        sd, [1, 2, 3, 4], {"semantic": [picture(1)]}, prompt=prompts, negative_prompt=negatives, num_images_per_prompt=2
    )
    close(found, wanted)


def test_several_images_of_one_condition_share_a_softmax(sd: Models, picture: Picture) -> None:
    images = [picture(1), picture(2), picture(3)]
    close(
        ours(sd, prompt="a dog", perceptual=images, seed=8),
        theirs(sd, [8], {"perceptual": images}, prompt="a dog"),
    )


def test_conditions_of_different_numbers_of_images(sd: Models, picture: Picture) -> None:
    images = {"perceptual": [picture(1), picture(2)], "semantic": [picture(3), picture(4), picture(5)]}
    found = ours(sd, prompt="a dog", **images, perceptual_scale=0.7, semantic_scale={"down": 1.0}, seed=8)
    close(found, theirs(sd, [8], images, [0.7, {"down": 1.0}], prompt="a dog"))


def test_three_conditions_in_their_order(sd: Models, picture: Picture) -> None:
    images = {"perceptual": [picture(1)], "semantic": [picture(2)], "image": [picture(3)]}
    scales = {"perceptual_scale": 0.2, "semantic_scale": 0.5, "image_scale": 0.9}
    close(
        ours(sd, prompt="a dog", **images, **scales, seed=8),
        theirs(sd, [8], images, list(scales.values()), prompt="a dog"),
    )


def test_the_kinds_of_conditions_differ(sd: Models, picture: Picture) -> None:
    found = [ours(sd, prompt="a dog", seed=1, **{kind: picture(1)}) for kind in OUTPUTS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[first] - found[second]).max() > 0.01


# --- what the engine's graphs take at once


def ranged(models: Models, unet: Range, **free: Range) -> GeneratorManifest:
    components = dict(models.manifest.components)
    for name, changes in (("unet", {"batch": unet, **free}), ("vae_decoder", {"batch": Range(1, 1, 1)})):
        components[name] = replace(components[name], free={**components[name].free, **changes})
    return replace(models.manifest, components=components)


@pytest.fixture(scope="module")
def alone(sd: Models, picture: Picture) -> tuple[dict[str, Any], list[Any]]:
    """Arguments, and the pictures of the seeds 4, 5 and 6 one by one."""
    arguments = {"prompt": "a red house", "perceptual": picture(1), "scheduler": "euler-a"}
    return arguments, [ours(sd, seed=seed, **arguments)[0] for seed in (4, 5, 6)]


@pytest.mark.parametrize(
    "batch", [Range(1, 1, 1), Range(2, 2, 2), Range(1, 2, 8), Range(3, 3, 8), Range(1, 8, 8), Range(1, 5, 5)]
)
def test_a_picture_does_not_depend_on_what_is_generated_with_it(
    sd: Models, batch: Range, alone: tuple[dict[str, Any], list[Any]]
) -> None:
    seen: list[int] = []

    def unet(inputs: Any) -> Any:
        seen.append(len(inputs["sample"]))
        return sd.components["unet"](inputs)

    models = replace(sd, components={**sd.components, "unet": unet})
    arguments, wanted = alone
    together = ours(models, manifest=ranged(sd, batch), seed=[4, 5, 6], images_per_prompt=3, **arguments)
    assert batch.minimum <= min(seen)
    assert max(seen) <= batch.maximum
    np.testing.assert_allclose(together, wanted, atol=1e-4)


def test_more_conditions_or_tokens_than_given_change_nothing(sd: Models, picture: Picture) -> None:
    manifest = ranged(sd, Range(1, 2, 2), conditions=Range(3, 3, 3), tokens=Range(8, 8, 16))
    for arguments in ({}, {"perceptual": picture(1)}, {"perceptual": picture(1), "image": [picture(2), picture(3)]}):
        found = ours(sd, manifest=manifest, prompt="a dog", seed=1, **arguments)
        np.testing.assert_allclose(found, ours(sd, prompt="a dog", seed=1, **arguments), atol=1e-4)


def test_a_seed_repeats_exactly(sd: Models, picture: Picture) -> None:
    first, second = (ours(sd, prompt="a dog", image=picture(1), seed=7, scheduler="dpm++-sde") for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_one_seed_counts_on_from_picture_to_picture(sd: Models) -> None:
    counted = ours(sd, prompt=["a dog", "a house"], seed=10)
    np.testing.assert_array_equal(counted, ours(sd, prompt=["a dog", "a house"], seed=[10, 11]))


# --- watching it


def test_every_step_is_told_and_the_last_preview_is_the_picture(sd: Models) -> None:
    steps: list[tuple[Step, list[Image.Image]]] = []
    found = ours(
        sd, lambda step: steps.append((step, step.preview())), ranged(sd, Range(1, 2, 2)), prompt=["a dog", "a house"],
        seed=1, scheduler="euler",
    )  # fmt: skip
    assert [step.index for step, _ in steps] == list(range(8))
    assert {step.steps for step, _ in steps} == {8}
    assert [step.pictures for step, _ in steps] == [(0,)] * 4 + [(1,)] * 4
    assert [step.seconds for step, _ in steps] == sorted(step.seconds for step, _ in steps)
    assert steps[-1][0].remaining == 0.0
    assert all(step.remaining > 0 and step.rate > 0 for step, _ in steps[:-1])
    for number in (0, 1):
        preview = steps[4 * number + 3][1]
        assert [np.asarray(p).tolist() for p in preview] == [np.asarray(to_image(found[number])).tolist()]


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++", "unipc", "lcm", "pndm"])
def test_previews_come_nearer_to_the_picture(sd: Models, scheduler: str) -> None:
    previews: list[np.ndarray[Any, Any]] = []
    found = ours(
        sd, lambda step: previews.append(np.asarray(step.preview()[0], np.float32)), prompt="a dog", seed=1, steps=10,
        scheduler=scheduler, guidance=1.0,
    )  # fmt: skip
    final = np.asarray(to_image(found[0]), np.float32)
    far = [float(np.abs(preview - final).mean()) for preview in previews]
    assert far[0] > far[3] > far[-1] == 0.0
    if scheduler in ("ddim", "euler", "dpm++", "unipc"):  # the others show noise, or really change their mind
        assert far[0] < 8.0


def test_on_step_can_stop_it(sd: Models) -> None:
    runs: list[int] = []

    def stop(step: Step) -> None:
        runs.append(step.index)
        if step.index == 1:
            step.cancel()

    with pytest.raises(GenerationCancelled, match=r"stopped after 2 of 4 steps\. Start it again"):
        ours(sd, stop, prompt="a dog", scheduler="ddim")
    assert runs == [0, 1]


def test_what_on_step_raises_passes_through(sd: Models) -> None:
    class MineError(Exception):
        pass

    def fail(_: Step) -> None:
        raise MineError

    with pytest.raises(MineError):
        ours(sd, fail, prompt="a dog")


@pytest.mark.parametrize(("component", "output"), [("unet", "noise"), ("vae_decoder", "images")])
def test_an_overflow_is_told_and_not_painted(sd: Models, component: str, output: str) -> None:
    def overflowing(inputs: Any) -> Any:
        return {output: sd.components[component](inputs)[output] * np.float32(np.nan)}

    models = replace(sd, components={**sd.components, component: overflowing})
    with pytest.raises(BackendExecutionError, match=r"no numbers.* Use precision='fp32'"):
        ours(models, prompt="a dog")
