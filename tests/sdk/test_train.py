"""``declip train`` from the command line: what it makes is exported, and each mistake is one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip_runtime.engine_file import EngineFile
from declip_sdk.cli import run
from declip_sdk.cli.heif import register_heif

from .command import DECLIP, in_terminal

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tower") / "train-verb.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """60 records."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(60):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{index}.jpg")
        texts = {"perceptual": f"noisy {index}", "semantic": f"thing {index}"}
        records.append({"id": f"r{index}", "image": f"{index}.jpg", **texts})
    path = tmp_path / "i2t.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def arguments(table: Path, tower: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def make(*extra: str | Path, records: Path = table) -> list[str]:
        usual = "--pretrained random --epochs 3 --batch 16 --lr 1e-3 --latent 8 --validation 0.2 --crops 2 --threads 1"
        command = ["train", records, "--tower", tower, "-o", tmp_path / "run", *usual.split(), *extra]
        return [str(a) for a in command]

    return make


def refused(arguments: list[str], capfd: Any) -> str:
    """The one line that ``declip`` says, and exit code 2."""
    assert run(arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("declip: ")]
    assert len(lines) == 1, lines
    return str(lines[0])


def test_trained_projectors_are_exported(
    arguments: Callable[..., list[str]], tower: Path, table: Path, tmp_path: Path, capfd: Any
) -> None:
    assert run(arguments("--report", table, "--report-kind", "blur", "--tensorboard")) == 0
    shown = capfd.readouterr()
    best, report = shown.out.splitlines()
    assert best.startswith(f"{tmp_path / 'run' / 'best.safetensors'} (step ")
    assert "validation loss" in best
    assert report == str(tmp_path / "run" / "report" / "report.md")
    assert "records of the report were trained on" in shown.err
    export = ["export", "--tower", str(tower), "--pretrained", "random", "-o", str(tmp_path / "e.engine")]
    assert run([*export, "--projector", str(tmp_path / "run" / "best.safetensors"), "--no-parity"]) == 0
    assert EngineFile.open(tmp_path / "e.engine").manifest.provenance["projector_sha256"]


def test_the_same_command_again_says_that_all_is_done(arguments: Callable[..., list[str]], capfd: Any) -> None:
    assert run(arguments()) == 0
    first = capfd.readouterr().out
    assert run(arguments()) == 0
    shown = capfd.readouterr()
    assert shown.out == first
    assert "is finished: nothing was trained" in shown.err
    assert "belongs to another run: tau is 0.1, was 0.07" in refused(arguments("--tau", "0.1"), capfd)


def test_without_validation_the_last_step_is_kept(
    arguments: Callable[..., list[str]], tmp_path: Path, capfd: Any
) -> None:
    assert run(arguments("--validation", "0")) == 0
    assert "no record was held out" in capfd.readouterr().out
    best, last = ((tmp_path / "run" / f"{name}.safetensors").read_bytes() for name in ("best", "last"))
    assert best == last


def test_unreadable_images_stop_or_are_counted(arguments: Callable[..., list[str]], tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    (tmp_path / "5.jpg").unlink()
    told = refused(arguments(), capfd)
    assert "2 of 60 images cannot be used: " in told
    assert "3.jpg" in told
    assert "5.jpg" in told
    assert "--skip-unreadable" in told
    assert run(arguments("--skip-unreadable")) == 0
    shown = capfd.readouterr()
    assert "2 of 60 images cannot be used" in shown.err
    assert "left out" in shown.err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--batch", "1024"], r"a batch of 1,024 is more than the \d+ records to train on\. Give --batch \d+ or less"),
        (["--validation", "0.0001"], "holds out 0 of 60 records, 2 are needed"),
        (["--lr", "nan"], "lr nan cannot work"),
        (["--tau", "0"], "tau 0.0 cannot work"),
        (["--device", "cuda:7"], "there is no device 'cuda:7'"),
        (["--device", "toaster"], "there is no device 'toaster'"),
        (["--init", "missing.safetensors"], "missing.safetensors cannot be read as projectors"),
        (["--report", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--pretrained", "nothing"], "'nothing' is neither a file nor a pretrained tag"),
        (["--lr", "1e38", "--weight-decay", "0"], r"no finite number after step \d+\. Still good: .*best"),
        (
            ["--validation", "0", "--batch", "60", "--epochs", "1", "--lr", "1e30", "--weight-decay", "1e20"],
            r"no finite number after step 1\. Nothing was written yet",
        ),
    ],
)
def test_each_mistake_is_one_line(
    extra: list[str], message: str, arguments: Callable[..., list[str]], capfd: Any
) -> None:
    assert re.search(message, refused(arguments(*extra), capfd))


def test_a_report_of_unknown_distortions_is_refused_before_the_training(
    arguments: Callable[..., list[str]], table: Path, tmp_path: Path, capfd: Any
) -> None:
    assert "no distortion rain. Use blur" in refused(arguments("--report", table, "--report-kind", "rain"), capfd)
    assert not (tmp_path / "run").exists()


def test_heic_is_read_where_pillow_heif_is_installed(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    registered: list[str] = []
    opener = SimpleNamespace(register_heif_opener=lambda: registered.append("heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif", opener)
    register_heif.cache_clear()
    refused(arguments("--device", "toaster"), capfd)
    register_heif.cache_clear()
    assert registered == ["heif"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "r0", "image": "a.jpg", "perceptual": "x", "semantic": "y"}', "same id 'r0'"),
        ('{"id": "r99", "image": "a.jpg", "perceptual": "  ", "semantic": "y"}', "perceptual is empty"),
        ("{broken", "is not JSON"),
    ],
)
def test_bad_records_are_one_line(
    line: str, message: str, arguments: Callable[..., list[str]], table: Path, capfd: Any
) -> None:
    with table.open("a") as stream:
        stream.write(line + "\n")
    assert message in refused(arguments(), capfd)


def test_a_checkpoint_of_another_form_is_one_line(
    arguments: Callable[..., list[str]], tmp_path: Path, capfd: Any
) -> None:
    assert run(arguments()) == 0
    capfd.readouterr()
    command = arguments("--init", tmp_path / "run" / "best.safetensors", "--latent", "9", "-o", tmp_path / "other")
    assert "holds projectors of width 8, SiLU 'between'" in refused(command, capfd)


def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_later(
    arguments: Callable[..., list[str]], tmp_path: Path, on_full_disk: Callable[..., Any]
) -> None:
    """20 kB are enough for the bank and too few for a checkpoint."""
    command = [*DECLIP, *arguments("--latent", "600")]
    result = on_full_disk(command, 20 * 1024)
    assert result.returncode == 2
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("declip: ")]
    assert f"cannot write {tmp_path / 'run' / 'best.safetensors'}" in line
    assert "give the same command again" in line
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_a_terminal_shows_rate_and_remaining_time(arguments: Callable[..., list[str]]) -> None:
    code, seen = in_terminal(*arguments("--epochs", "200"))
    assert code == 0
    assert "training" in seen
    assert "/s" in seen
    assert "0:00:0" in seen
