"""Pre-training, feature bank, projectors and CoOp on a tiny CLIP: they learn, they resume, they repeat."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from declip_runtime.errors import TrainingError
from declip_training.data.batches import BatchSource
from declip_training.data.descriptions import ANTONYMS
from declip_training.evaluation.metrics import srcc
from declip_training.features import FeatureBatch, build_feature_bank, tower_features
from declip_training.linear_head import fit_linear_head
from declip_training.losses import antonym_logit, indifference
from declip_training.model.text_encoding import encode_texts
from declip_training.objective import split_images
from declip_training.pretrain import PretrainConfig, pretrain, pretrained
from declip_training.projectors import LEFT, ProjectorConfig, content_left, train_projectors
from declip_training.state import load_state, save_state

CONFIG = PretrainConfig(steps=6, crops=((1.0, 48),), warmup=2, save_every=3)
SCALE = 10.0


def run(
    clip: Any, tokenizer: Any, pre: Any, source: BatchSource, folder: Path, steps: int = 6
) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    config = CONFIG if steps == 6 else PretrainConfig(**{**vars(CONFIG), "steps": steps})
    trained = pretrain(copy.deepcopy(clip), tokenizer, source, config, folder, mean=pre.mean, std=pre.std)
    return trained.state_dict()


class KilledError(Exception):
    """Stands for kill -9 in the middle of a run."""


class Dying:
    """A source that dies at a step."""

    def __init__(self, source: BatchSource, step: int) -> None:
        self.source, self.step, self.kinds = source, step, source.kinds

    def batch(self, step: int, crop: int) -> Any:
        if step == self.step:
            raise KilledError
        return self.source.batch(step, crop)


def test_a_killed_run_resumes_to_bit_identical_weights(tiny_clip: Any, source: BatchSource, tmp_path: Path) -> None:
    whole = run(*tiny_clip, source, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(*tiny_clip, Dying(source, 4), tmp_path / "killed")  # type: ignore[arg-type]
    resumed = run(*tiny_clip, source, tmp_path / "killed")
    start = tiny_clip[0].state_dict()
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_what_is_dropped_at_random_is_the_same_in_a_run_that_goes_on(
    tiny_clip: Any, source: BatchSource, tmp_path: Path
) -> None:
    """As in the bundled engine's tower, whose last layer drops features; and the caller's own numbers go on."""
    clip, *rest = tiny_clip
    clip = copy.deepcopy(clip).requires_grad_(True)
    dropping = copy.deepcopy(clip)
    dropping.visual = torch.nn.Sequential(dropping.visual, torch.nn.Dropout(0.5))
    torch.manual_seed(5)
    whole = run(dropping, *rest, source, tmp_path / "whole")
    after = torch.rand(1)
    torch.manual_seed(6)
    with pytest.raises(KilledError):
        run(dropping, *rest, Dying(source, 4), tmp_path / "killed")  # type: ignore[arg-type]
    torch.manual_seed(7)
    resumed = run(dropping, *rest, source, tmp_path / "killed")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    undropped = run(clip, *rest, source, tmp_path / "undropped")
    assert not torch.equal(whole["visual.0.conv1.weight"], undropped["visual.conv1.weight"])
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_batches_of_other_processes_are_the_same() -> None:
    """In a process of its own: this one has threads of other tests, which a fork would not take along."""
    program = (
        "import numpy as np, torch\n"
        "from types import SimpleNamespace\n"
        "from declip_training.pretrain import _batches\n"
        "class Source:\n"
        "    def batch(self, step, crop):\n"
        "        pixels = np.random.default_rng(step).integers(0, 256, (3, crop, crop, 3), dtype=np.uint8)\n"
        "        return SimpleNamespace(pixels=pixels, labels=f'{step} {crop}')\n"
        "plan = [(step, 8 + step % 2) for step in range(4, 24)]\n"
        "alone, helped = (list(_batches(Source(), plan, torch.device('cpu'), n)) for n in (0, 2))\n"
        "assert [labels for _, labels in helped] == [f'{step} {crop}' for step, crop in plan]\n"
        "assert all(torch.equal(a, b) and k == m for (a, k), (b, m) in zip(alone, helped, strict=True))\n"
        "print(len(helped))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("20\n", 0), done.stderr


def test_workers_are_refused_where_processes_do_not_fork(
    tiny_clip: Any, source: BatchSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, tokenizer, pre = tiny_clip
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(TrainingError, match=r"only where processes fork\. Use --workers 0"):
        pretrain(copy.deepcopy(clip), tokenizer, source, CONFIG, tmp_path, mean=pre.mean, std=pre.std, workers=1)


def test_what_was_pretrained_is_kept(tiny_clip: Any, source: BatchSource, tmp_path: Path) -> None:
    """It is read again and not made again, and refused where it is not what was asked for."""
    clip, tokenizer, pre = tiny_clip
    path = tmp_path / "clip.safetensors"

    def train(model: torch.nn.Module) -> torch.nn.Module:
        return pretrain(model, tokenizer, source, CONFIG, tmp_path, mean=pre.mean, std=pre.std)

    first, second = copy.deepcopy(clip), copy.deepcopy(clip)
    pretrained(first, CONFIG, path, train)
    pretrained(second, CONFIG, path, lambda _: pytest.fail("it was there"))
    alone = run(*tiny_clip, source, tmp_path / "alone")
    for made in (first.state_dict(), second.state_dict()):
        assert all(torch.equal(tensor, made[name]) for name, tensor in alone.items())
    with pytest.raises(TrainingError, match=r"made with other settings: steps is 7, was 6\. Give another folder"):
        pretrained(copy.deepcopy(clip), replace(CONFIG, steps=7), path, lambda _: clip)
    with pytest.raises(TrainingError, match=r"clip\.safetensors is not of this model"):
        pretrained(torch.nn.Linear(2, 2), CONFIG, path, lambda _: torch.nn.Identity())


def test_what_was_pretrained_says_the_commit_that_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work may go on while a training runs."""
    code = ["before"]
    monkeypatch.setattr("declip_training.pretrain.commit", lambda: code[0])

    def train(model: torch.nn.Module) -> torch.nn.Module:
        code[0] = "changed meanwhile"
        return model

    for _ in range(2):
        assert pretrained(torch.nn.Linear(2, 2), CONFIG, tmp_path / "clip.safetensors", train) == "before"


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    one, other = torch.nn.Linear(3, 3), torch.nn.Linear(4, 4)
    save_state(tmp_path / "s.safetensors", {"model": one}, torch.optim.AdamW(one.parameters()), 5)
    with pytest.raises(TrainingError, match="another model"):
        load_state(tmp_path / "s.safetensors", {"model": other}, torch.optim.AdamW(other.parameters()))


def test_a_loss_that_is_not_finite_ends_the_run(tiny_clip: Any, source: BatchSource, tmp_path: Path) -> None:
    clip, tokenizer, pre = tiny_clip
    broken = copy.deepcopy(clip)
    broken.logit_scale.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 2\. .*lower the learning rate"):
        pretrain(broken, tokenizer, source, CONFIG, tmp_path, mean=pre.mean, std=pre.std)
    assert not (tmp_path / "pretrain.safetensors").exists()


def test_pretraining_logs_json_lines(tiny_clip: Any, source: BatchSource, tmp_path: Path) -> None:
    run(*tiny_clip, source, tmp_path, steps=50)
    (line,) = (json.loads(text) for text in (tmp_path / "pretrain.jsonl").read_text().splitlines())
    assert line["step"] == 50
    assert {"mos", "ladder", "semantic", "steps_per_s"} <= set(line)


@pytest.fixture(scope="module")
def bank(tiny_clip: Any, source: BatchSource, tmp_path_factory: pytest.TempPathFactory) -> list[FeatureBatch]:
    clip, _, pre = tiny_clip
    path = tmp_path_factory.mktemp("bank") / "features.safetensors"
    return build_feature_bank(
        clip.visual, source, [(i, 48) for i in range(12)], path, mean=pre.mean, std=pre.std, key="k"
    )


def test_feature_bank_is_reused_and_keyed(tiny_clip: Any, source: BatchSource, tmp_path: Path) -> None:
    clip, _, pre = tiny_clip
    path = tmp_path / "features.safetensors"

    def build(key: str, from_source: Any) -> list[FeatureBatch]:
        return build_feature_bank(clip.visual, from_source, [(0, 48)], path, mean=pre.mean, std=pre.std, key=key)

    first = build("one", source)
    again = build("one", Dying(source, 0))  # would raise if it were asked
    assert torch.equal(first[0].features, again[0].features)
    assert first[0].labels.captions == again[0].labels.captions
    with pytest.raises(TrainingError, match="another tower"):
        build("two", source)


def test_projectors_mend_ladders_keep_opinions_and_the_best_step(tiny_clip: Any, bank: list[FeatureBatch]) -> None:
    clip, tokenizer, _ = tiny_clip
    pair = encode_texts(clip, tokenizer, ANTONYMS[0])
    rated, ladders = (torch.cat([split_images(b.features, b.labels)[part] for b in bank]) for part in (0, 1))
    severities = np.concatenate([b.labels.severities for b in bank])

    @torch.no_grad()
    def logit(perceptual: torch.nn.Module, x: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        return antonym_logit(F.normalize(perceptual(x), dim=-1), pair, SCALE).numpy()

    def agreement(perceptual: torch.nn.Module) -> float:
        falling = logit(perceptual, ladders).reshape(severities.shape)
        return float(np.mean([srcc(-row, truth) for row, truth in zip(falling, severities, strict=True)]))

    @torch.no_grad()
    def content(module: torch.nn.Module) -> float:
        shown = [
            (split_images(b.features, b.labels)[2], encode_texts(clip, tokenizer, b.labels.captions)) for b in bank
        ]
        found = [indifference(F.normalize(module(x), dim=-1), captions, SCALE) for x, captions in shown]
        return float(torch.stack(found).mean())

    logged: list[dict[str, float]] = []
    config = ProjectorConfig(steps=60, merged=2, lr=3e-3, check_every=20, semantic_lr=3e-3, silent=30.0)
    before = agreement(torch.nn.Identity())
    perceptual, semantic = train_projectors(
        bank, lambda s: encode_texts(clip, tokenizer, s), SCALE, config, lambda p: {"choice": agreement(p)},
        logged.append,
    )  # fmt: skip
    left = content_left(perceptual, bank, lambda s: encode_texts(clip, tokenizer, s))
    assert agreement(perceptual) - LEFT * left == pytest.approx(max(line["choice"] for line in logged))
    assert content(perceptual) < 0.8 * content(torch.nn.Identity()), "what a photo shows is left out"
    assert agreement(perceptual) > before + 0.1
    moved = [np.abs(logit(perceptual, x) - logit(torch.nn.Identity(), x)).mean() for x in (rated, ladders)]
    assert moved[0] < 0.5 * moved[1], "photos with opinions keep theirs, ladders move"
    assert float(semantic.down.weight.detach().abs().max()) > 0
    assert logit(semantic, rated).std() < 0.5 * logit(torch.nn.Identity(), rated).std(), "it says nothing of quality"


def test_linear_head_finds_a_linear_opinion(tiny_clip: Any, bank: list[FeatureBatch]) -> None:
    predict = fit_linear_head(bank, ridge=1e-3)
    x = torch.cat([b.features[: len(b.labels.mos)] for b in bank])
    mos = np.concatenate([b.labels.mos for b in bank])
    assert srcc(predict(x), mos) > 0.8


def test_features_do_not_depend_on_the_batch(tiny_clip: Any, photos: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    clip, _, pre = tiny_clip
    crops = photos[:, :48, :48]
    many = np.concatenate([crops, crops])[:70]
    together = tower_features(clip.visual, many, pre.mean, pre.std)
    alone = tower_features(clip.visual, many[66:67], pre.mean, pre.std)
    assert torch.nn.functional.cosine_similarity(together[66:67], alone).item() > 0.999
