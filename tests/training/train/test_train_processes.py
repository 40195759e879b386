"""Two processes that train together give what one gives."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from declip_runtime.errors import TrainingError
from declip_sdk.cli import run
from declip_training.train import world as world_module
from declip_training.train.loop import steps_per_epoch
from declip_training.train.world import World, join

from .conftest import declip, environment

OPTIONS = (
    "--pretrained random --epochs 12 --batch 40 --lr 3e-3 --latent 16 --validation 0.2 --precision fp32 --threads 1"
)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(arguments: list[str | Path], size: int) -> list[subprocess.Popen[str]]:
    shared = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(size)}
    return [declip(arguments, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)]


def together(arguments: list[str | Path], size: int = 2) -> list[tuple[int, str, str]]:
    """Run the same command in ``size`` processes, as torchrun does; exit code, output and errors of each."""
    started = start(arguments, size)
    ended = [process.communicate(timeout=600) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, ended, strict=True)]


@pytest.mark.parametrize("extra", ["--clip-norm 0.5", "--loss symmetric --learn-tau --weight-decay 0"])
def test_two_gloo_processes_give_the_single_process_result(
    extra: str, table: Path, tiny_config: Path, tmp_path: Path
) -> None:
    def command(folder: Path) -> list[str | Path]:
        return ["train", table, "--tower", tiny_config, "-o", folder, *OPTIONS.split(), *extra.split()]

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert run([str(argument) for argument in command(alone)]) == 0
    results = together(command(shared))
    assert [code for code, _, _ in results] == [0, 0], results
    assert results[0][1].startswith(str(shared / "best.safetensors"))
    assert results[1][1:] == ("", ""), "the first process speaks for both"

    for name in ("images", "texts"):
        assert np.array_equal(np.load(alone / "bank" / f"{name}.npy"), np.load(shared / "bank" / f"{name}.npy"))
    one, two = (load_file(folder / "state.safetensors") for folder in (alone, shared))
    assert one["module.heads.perceptual.down.weight"].abs().max() > 1e-2
    for key, tensor in one.items():
        if key.startswith("module"):
            torch.testing.assert_close(two[key], tensor, atol=2e-5, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")
    if "symmetric" in extra:
        (first, _, errors), second = together([*command(shared), "--tau", "0.1"])
        assert [line for line in errors.splitlines() if not line.startswith("  ")] == [errors.splitlines()[-1]]
        assert "belongs to another run: tau is 0.1, was 0.07" in errors
        assert (first, *second) == (2, 2, "", "")
    logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (alone, shared)]
    assert logs[0][-1]["validation"] == pytest.approx(logs[1][-1]["validation"], rel=1e-4)


def test_a_process_waits_as_long_as_another_makes_features(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(world_module, "rendezvous", lambda url, timeout: iter([(None, 0, 2)]))
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **options: given.update(options))
    for name, value in (("get_rank", 0), ("get_world_size", 2), ("destroy_process_group", None)):
        monkeypatch.setattr(distributed, name, lambda value=value: value)
    with join("cpu"):
        assert timedelta(days=7) < given["timeout"] < timedelta(milliseconds=2**31)


def test_who_comes_alone_waits_a_while_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "_JOINING", timedelta(seconds=2))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "RANK": "0"}
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=r"cannot join 2 processes: .*[^.]\. Start them with torchrun"), join("cpu"):
        pass


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_says_so(killed: int, table: Path, tiny_config: Path, tmp_path: Path) -> None:
    options = OPTIONS.replace("--epochs 12", "--epochs 4000")
    command: list[str | Path] = ["train", table, "--tower", tiny_config, "-o", tmp_path, *options.split()]
    processes = start([*command, "--save-every", "5"], 2)
    deadline = time.monotonic() + 300
    while not (tmp_path / "state.safetensors").is_file():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[killed].kill()
    processes[killed].communicate()
    _, errors = processes[1 - killed].communicate(timeout=120)
    assert processes[1 - killed].returncode == 2
    said = [line for line in errors.splitlines() if line and not line.startswith("  ")]
    assert said[-1].startswith("declip: one of the 2 processes that train together has ended (")
    assert "Traceback" not in errors


@pytest.mark.parametrize("own", [None, "mine"])
def test_what_one_process_refuses_all_do(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "_tell", lambda self, refusal: ["the leader's", refusal])
    with pytest.raises(TrainingError, match=own or "the leader's"):
        _refuse(World(1, 2), own)


def _refuse(world: World, own: str | None) -> None:
    with world.together():
        if own:
            raise TrainingError(own)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(TrainingError, match="a batch of 41 cannot be shared by 2 processes"):
        steps_per_epoch(100, 41, 2)
