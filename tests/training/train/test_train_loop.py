"""The loop: what plain torch does, on data that can be decoupled, and every way a run can end."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from declip_runtime.errors import CheckpointError, TrainingError
from declip_training.losses import image_to_text
from declip_training.model.checkpoint import load_projectors
from declip_training.model.projector import Projector
from declip_training.train import loop
from declip_training.train import sole as sole_module
from declip_training.train.curves import Curves
from declip_training.train.loop import Heads, Reporting, Trainer
from declip_training.train.report import retrieval
from declip_training.train.run import Job, train
from declip_training.train.run_folder import RunFolder
from declip_training.train.schedule import epoch_order
from declip_training.train.sole import sole
from declip_training.train.source import BankSource
from declip_training.train.towers import Towers
from declip_training.train.world import World

from .conftest import CPU, declip, small

WORLD = World()


def features(count: int = 400, dim: int = 24, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pictures that mix a look and a content, float16 [N, 3, D], with a text for each of both, [N, 2, D]."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 6, dim))
    rng = np.random.default_rng(seed)
    look, content = rng.normal(size=(2, count, 6))
    images = (look @ mixing[0] + content @ mixing[1])[:, None] + 0.1 * rng.normal(size=(count, 3, dim))
    texts = np.stack([look @ mixing[0], content @ mixing[1]], 1)
    texts /= np.linalg.norm(texts, axis=2, keepdims=True)
    return images.astype(np.float16), texts.astype(np.float16)


def trainer(folder: Path, settings: Any, source: Any = None, rows: int = 400, **more: Any) -> tuple[Trainer, Heads]:
    images, texts = features()
    source = source or BankSource(images, texts, settings.seed)
    heads = Heads(source.dim, settings)
    folder.mkdir(exist_ok=True)

    def save(trained: Heads, path: Path) -> None:
        save_file(trained.state_dict(), path)

    split = np.arange(rows // 5, rows), np.arange(rows // 5)
    run = Trainer(heads, source, split, settings, RunFolder(folder), save, WORLD, CPU, Reporting(**more))
    return run, heads


@pytest.mark.parametrize("activation", ["between", "before"])
def test_weights_equal_those_of_a_plain_torch_loop(tmp_path: Path, activation: str) -> None:
    settings = small(batch=64, epochs=3, activation=activation, warmup=4, clip_norm=0.5, schedule="cosine", seed=5)
    run, heads = trainer(tmp_path, settings)
    images, texts = features()
    torch.manual_seed(5)
    plain = [Projector(24, 16, settings.activation), Projector(24, 16, settings.activation)]
    parameters = [p for projector in plain for p in projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    run.run()
    source = BankSource(images, texts, 5)
    for step in range(15):
        rows = epoch_order(np.arange(80, 400), 5, step // 5)[step % 5 * 64 :][:64]
        x, texts = source.images(rows, step // 5).float(), source.texts(rows)
        losses = [
            image_to_text(F.normalize(projector(x), dim=-1), texts[side].float(), 1 / 0.07)
            for side, projector in enumerate(plain)
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        rate = step + 1 if step < 4 else 2 * (1 + math.cos(math.pi * (step - 4) / 11))
        optimizer.param_groups[0]["lr"] = settings.lr * rate / 4
        optimizer.step()
    for name, projector in zip(("perceptual", "semantic"), plain, strict=True):
        for key, value in projector.state_dict().items():
            torch.testing.assert_close(heads.get_submodule(name).state_dict()[key], value, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"loss": "symmetric", "learn_tau": True, "clip_norm": 0.5}])
def test_side_by_side_is_what_one_after_the_other_is(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(batch=64, epochs=3, **changes)
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run, beside = trainer(tmp_path / "beside", settings)
        run.run()
        assert torch.get_num_threads() == 2, "of this thread"
        run, after = trainer(tmp_path / "after", settings)
        torch.set_num_threads(1)
        run.run()
    finally:
        torch.set_num_threads(cores)
    for name, value in beside.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


def test_images_of_one_picture_are_on_one_side(place: Path, towers: Towers, tmp_path: Path) -> None:
    """Several captions a picture, with ids of their own: no step is chosen on pictures that were trained on."""
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    several = [{**row, "id": f"{row['id']}-{n}"} for row in rows[:60] for n in range(3)]
    place.write_text("".join(json.dumps(row) + "\n" for row in several))
    seen: list[tuple[list[int], list[int]]] = []
    made = loop.Trainer.__init__

    def noted(self: Trainer, heads: Any, source: Any, split: Any, *rest: Any) -> None:
        seen.append((split[0].tolist(), split[1].tolist()))
        made(self, heads, source, split, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "__init__", noted)
        summary = train(job(place, tmp_path / "run"), towers, WORLD)
    trained, validates = ({row // 3 for row in rows} for rows in seen[0])
    assert not trained & validates
    assert (summary["train"], summary["validation"]) == (3 * len(trained), 3 * len(validates))
    assert len(validates) > 3


def test_a_finished_run_whose_result_is_gone_says_so(table: Path, towers: Towers, tmp_path: Path) -> None:
    train(job(table, tmp_path / "run"), towers, WORLD)
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"is finished, but best.safetensors is gone. Put it back; or remove"):
        train(job(table, tmp_path / "run"), towers, WORLD)


def test_a_run_does_not_go_on_with_other_records_held_out(
    table: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of before images had one side: the best step would be chosen on what was trained on."""
    stop_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(job(table, tmp_path / "run"), towers, WORLD)
    stated = tmp_path / "run" / "run.json"
    known = json.loads(stated.read_text())
    assert known.pop("held_out_sha256")
    stated.write_text(json.dumps(known))
    with pytest.raises(TrainingError, match="was begun with other records held out"):
        train(job(table, tmp_path / "run"), towers, WORLD)


@pytest.mark.parametrize(("cores", "shares"), [(2, [1, 1]), (3, [1, 2]), (4, [2, 2])])
def test_each_side_has_its_share_of_the_cores(cores: int, shares: list[int]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(cores)  # a run before may have started these threads, and the main one have another number
    try:
        together = threading.Barrier(2)

        def found(_: int) -> int:
            together.wait()
            torch.randn(300, 300) @ torch.randn(300, 300)
            return torch.get_num_threads()

        assert sorted(loop._threads(cores).map(found, range(2))) == shares
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


def test_a_live_run_does_not_go_on_with_an_image_that_changed(place: Path, towers: Towers, tmp_path: Path) -> None:
    def change(step: int, values: dict[str, float]) -> None:
        Image.new("RGB", (50, 50), "red").save(place.parent / "7.png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_log", lambda self, step, *_: change(step, {}))
        with pytest.raises(TrainingError, match=r"1 images can no longer be read: .*7\.png' has changed since"):
            train(job(place, tmp_path / "run", settings=small(live=True)), towers, WORLD)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"loss": "symmetric"}, {"learn_tau": True}])
def test_a_mixture_of_look_and_content_is_taken_apart(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = small(batch=80, epochs=40, lr=5e-3, latent=48, weight_decay=0.01, **changes)
    run, heads = trainer(tmp_path, settings)
    run.run()
    images, texts = (torch.from_numpy(a).float() for a in features(seed=9))  # pictures that training never saw

    def found(embedded: torch.Tensor, side: int) -> float:
        return retrieval(F.normalize(embedded, dim=-1), texts[:, side])["recall@1"]

    with torch.no_grad():
        clip, look, content = images[:, 0], heads.perceptual(images[:, 0]), heads.semantic(images[:, 0])
    assert found(look, 0) > found(clip, 0) + 0.2
    assert found(content, 1) > found(clip, 1) + 0.2
    assert found(look, 1) < 0.05 + 0.2 * found(clip, 1)
    assert found(content, 0) < 0.05 + 0.2 * found(clip, 0)
    if "learn_tau" in changes:
        assert heads.tau != pytest.approx(settings.tau, rel=0.05)
        assert 0.01 <= heads.tau <= 1
    else:
        assert heads.tau == pytest.approx(settings.tau)


def test_training_begins_at_clip_itself(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, small(epochs=1))
    run.run()
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    images, texts = (torch.from_numpy(a).float() for a in features())
    unit = F.normalize(images[:80, 0], dim=-1)
    expected = [
        np.mean([image_to_text(unit[i : i + 40], texts[i : i + 40, side], 1 / 0.07) for i in (0, 40)])
        for side in (0, 1)
    ]
    assert first["step"] == 0
    assert [first["validation_perceptual"], first["validation_semantic"]] == pytest.approx(expected, rel=1e-4)


def test_the_best_checkpoint_is_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, small(epochs=12, lr=0.2))  # overshoots
    result = run.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert result["best_step"] == min(judged, key=lambda step: judged[step]) < run.steps
    assert result["best_validation"] == min(judged.values())


def test_a_loss_that_is_no_number_stops_with_its_step_and_leaves_what_is_good(tmp_path: Path) -> None:
    images, texts = features()

    class Poisoned(BankSource):
        def images(self, rows: Any, epoch: int | None) -> torch.Tensor:
            return super().images(rows, epoch) * (math.nan if epoch == 2 else 1)

    run, _ = trainer(tmp_path, small(batch=80), Poisoned(images, texts, 0), save_every=3)
    with pytest.raises(TrainingError, match=r"after step 9\. Still good: .*best\.safetensors, .*state\.safetensors"):
        run.run()
    assert all(bool(torch.isfinite(t).all()) for t in load_file(tmp_path / "state.safetensors").values() if t.ndim)
    assert all(bool(torch.isfinite(t).all()) for t in load_file(tmp_path / "best.safetensors").values())


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    run, heads = trainer(tmp_path, small(batch=80), save_every=1)
    one = run._one

    def overflow(step: int) -> dict[str, float]:
        result = one(step)
        if step == 5:
            heads.semantic.up.weight.data[0, 0] = math.inf
        return result

    run._one = overflow  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="after step 6"):
        run.run()
    assert all(bool(torch.isfinite(t).all()) for t in load_file(tmp_path / "state.safetensors").values() if t.ndim)


def job(table: Path, folder: Path, **more: Any) -> Job:
    return Job(table, folder, more.pop("settings", small()), save_every=3, log_every=1, **more)


def test_a_run_makes_checkpoints_for_its_tower(table: Path, towers: Towers, tmp_path: Path) -> None:
    summary = train(job(table, tmp_path / "run"), towers, WORLD)
    assert summary["steps"] == 8
    assert summary["train"] + summary["validation"] == 120
    for name in ("best", "last"):
        checkpoint = load_projectors(tmp_path / "run" / f"{name}.safetensors")
        checkpoint.require_tower(towers.visual, "tiny-train")
        assert (checkpoint.tower, checkpoint.pretrained) == ("tiny-train", "random")
        assert checkpoint.perceptual.down.weight.abs().max() > 0
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_finished_run_trains_nothing(table: Path, towers: Towers, tmp_path: Path) -> None:
    first = train(job(table, tmp_path / "run"), towers, WORLD)
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    again = train(job(table, tmp_path / "run"), towers, WORLD)
    assert again == {**first, "already": True}
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next run end in a step, as by Ctrl+C."""
    one = Trainer._one

    def interrupted(self: Trainer, number: int) -> dict[str, float]:
        if number == step:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return one(self, number)

    monkeypatch.setattr(Trainer, "_one", interrupted)


def test_a_run_goes_on_with_the_images_it_began_with_wherever_they_lie(
    place: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(job(place, tmp_path / "run"), towers, WORLD)
    shutil.rmtree(tmp_path / "run" / "bank")
    moved = Path(shutil.move(place.parent, tmp_path / "moved")) / place.name
    picture = (moved.parent / "7.png").read_bytes()
    shutil.copy(moved.parent / "8.png", moved.parent / "7.png")
    with pytest.raises(TrainingError, match=r"another run: images_sha256 is .* or another folder with -o"):
        train(job(moved, tmp_path / "run"), towers, WORLD)
    shutil.rmtree(tmp_path / "run" / "bank")
    (moved.parent / "7.png").write_bytes(picture)
    assert train(job(moved, tmp_path / "run"), towers, WORLD)["steps"] == 8


def test_a_run_has_its_folder_for_itself(table: Path, towers: Towers, tmp_path: Path) -> None:
    with (
        sole(tmp_path / "run", WORLD, print),
        pytest.raises(TrainingError, match=rf"run is in use by another run \(process {os.getpid()} on .*-o"),
    ):
        train(job(table, tmp_path / "run"), towers, WORLD)
    assert train(job(table, tmp_path / "run"), towers, WORLD)["steps"] == 8


def test_where_nobody_can_be_kept_away_it_is_said(
    table: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockless(stream: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(sole_module, "lock", lockless)
    told: list[str] = []
    assert train(job(table, tmp_path / "run"), towers, WORLD, say=told.append)["steps"] == 8
    folders = tmp_path / "run", tmp_path / "run" / "bank" / "blocks"
    for folder in folders:
        assert told.count(f"{folder} cannot be locked (No locks available). See to it that no other run uses it.") == 1


def test_a_kill_before_the_summary_costs_nothing_of_it(table: Path, towers: Towers, tmp_path: Path) -> None:
    summary = train(job(table, tmp_path / "run"), towers, WORLD)
    (tmp_path / "run" / "summary.json").unlink()
    assert "loss" in summary
    assert train(job(table, tmp_path / "run"), towers, WORLD) == summary


def test_another_configuration_in_the_same_folder_is_refused_by_name(
    table: Path, towers: Towers, tmp_path: Path
) -> None:
    train(job(table, tmp_path / "run"), towers, WORLD)
    with pytest.raises(TrainingError, match=r"belongs to another run: epochs is 5, was 4; lr is 0\.1, was 0\.001\."):
        train(job(table, tmp_path / "run", settings=small(lr=0.1, epochs=5)), towers, WORLD)
    assert RunFolder(tmp_path / "run").summary() is not None


def test_a_damaged_state_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"cut off")
    run, _ = trainer(tmp_path, small())
    with pytest.raises(TrainingError, match=r"state\.safetensors is damaged"):
        run.run()


def test_a_mind_may_be_changed_before_the_first_step(table: Path, towers: Towers, tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").agree({"lr": 3.0})
    assert train(job(table, tmp_path / "run"), towers, WORLD)["steps"] == 8


def test_results_of_something_else_are_not_overwritten(table: Path, towers: Towers, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_text("mine")
    with pytest.raises(TrainingError, match=r"best\.safetensors but no run\.json"):
        train(job(table, tmp_path), towers, WORLD)
    assert (tmp_path / "best.safetensors").read_text() == "mine"


def test_runs_share_a_bank_and_live_crops_need_none(table: Path, towers: Towers, tmp_path: Path) -> None:
    train(job(table, tmp_path / "a", bank=tmp_path / "bank"), towers, WORLD)
    stages: list[str] = []
    settings = small(loss="symmetric")
    train(
        job(table, tmp_path / "b", bank=tmp_path / "bank", settings=settings), towers, WORLD,
        progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert set(stages) == {"training"}
    live = train(job(table, tmp_path / "live", settings=small(live=True)), towers, WORLD)
    assert live["steps"] == 8
    assert not (tmp_path / "live" / "bank" / "images.npy").exists()
    again = train(job(table, tmp_path / "live2", settings=small(live=True)), towers, WORLD)
    assert again["loss"] == live["loss"]


def test_initial_projectors_are_gone_on_from_and_must_have_the_form(
    table: Path, towers: Towers, tiny_config: Path, tmp_path: Path
) -> None:
    train(job(table, tmp_path / "a"), towers, WORLD)
    start = tmp_path / "a" / "best.safetensors"
    train(job(table, tmp_path / "b", init=start), towers, WORLD)
    ends = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    begins = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[0])
    assert begins["validation"] == pytest.approx(ends["validation"])
    for settings in (small(latent=8), small(activation="before")):
        with pytest.raises(TrainingError, match="Give --latent 16 --activation between"):
            train(job(table, tmp_path / "c", init=start, settings=settings), towers, WORLD)
    other = Towers.load(str(tiny_config), "random", CPU, "fp32")
    next(other.visual.parameters()).add_(0.1)
    with pytest.raises(CheckpointError, match="another tower"):
        train(job(table, tmp_path / "d", init=start), other, WORLD)


def test_tensorboard_has_the_curves(table: Path, towers: Towers, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(job(table, tmp_path / "run", tensorboard=True), towers, WORLD)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "perceptual", "semantic", "lr", "tau", "validation"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 9))


def test_curves_of_a_resumed_run_repeat_no_step(
    table: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stop_at(5, monkeypatch)  # two steps after the state
    with pytest.raises(KeyboardInterrupt):
        train(job(table, tmp_path / "run", tensorboard=True), towers, WORLD)
    train(job(table, tmp_path / "run", tensorboard=True), towers, WORLD)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 9))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_curves_on_a_full_disk_are_one_error(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves._path = Path("/dev/full")
    with pytest.raises(TrainingError, match="cannot write /dev/full: No space left on device"):
        curves.write(1, {"loss": 1.0})


def test_kill_9_at_any_time_resumes_to_the_same_bits(table: Path, tiny_config: Path, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str | Path]:
        options = "--pretrained random --epochs 250 --batch 40 --lr 1e-3 --latent 16 --validation 0.2 --learn-tau"
        options += " --save-every 7 --log-every 1 --threads 1 --crops 2 --schedule cosine --precision fp32"
        return ["train", table, "--tower", tiny_config, "-o", folder, *options.split()]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = declip(command(whole))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    kills = 0
    for wanted in (1, 40, 333):  # steps, about
        process = declip(command(killed))
        while process.poll() is None and _last_step(killed / "log.jsonl") < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3
    assert not (killed / "summary.json").exists()
    process = declip(command(killed))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for name in ("best", "last", "state"):
        ours, theirs = load_file(whole / f"{name}.safetensors"), load_file(killed / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), (name, key)
    steps = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in (whole / "log.jsonl").read_text().splitlines()]


def _last_step(log: Path) -> int:
    try:
        return int(json.loads(log.read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError):
        return -1


def test_the_identity_of_a_run_is_all_that_decides_its_weights(table: Path, towers: Towers, tmp_path: Path) -> None:
    train(job(table, tmp_path / "run"), towers, WORLD)
    stated = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(vars(small())) <= set(stated)
    assert {"records_sha256", "clip_sha256", "used_sha256", "images_sha256", "init_sha256"} <= set(stated)
    more = replace(job(table, tmp_path / "run"), threads=1, log_every=7, save_every=100)
    assert train(more, towers, WORLD)["already"]
