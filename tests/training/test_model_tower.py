"""Loading towers: seeded, from files, and every way in which that goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from declip_runtime.errors import CheckpointError, ExportError
from declip_training.model.tower import load_clip
from declip_training.recipes.nano import MODEL_CONFIG


def test_random_is_seeded_and_leaves_the_random_state_alone(tiny_config: Path) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    a, _, _ = load_clip(str(tiny_config), "random", seed=4)
    assert torch.equal(torch.rand(3), wanted)
    b, _, _ = load_clip(str(tiny_config), "random", seed=4)
    c, _, _ = load_clip(str(tiny_config), "random", seed=5)
    assert torch.equal(a.visual.conv1.weight, b.visual.conv1.weight)
    assert not torch.equal(a.visual.conv1.weight, c.visual.conv1.weight)
    assert not a.training


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_checkpoint_file(tiny_config: Path, tiny_clip: Any, tmp_path: Path, ending: str) -> None:
    other, _, _ = load_clip(str(tiny_config), "random", seed=9)
    state = {k: v.contiguous() for k, v in other.state_dict().items()}
    path = tmp_path / f"w.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    loaded, _, preprocess = load_clip(str(tiny_config), path)
    assert torch.equal(loaded.visual.proj, other.visual.proj)
    assert not torch.equal(loaded.visual.proj, tiny_clip[0].visual.proj)
    assert preprocess.size == 48


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x05garbage"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_damaged_checkpoint(tiny_config: Path, tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.(safetensors|pt)"):
        load_clip(str(tiny_config), path)


def test_checkpoint_of_another_tower(tiny_config: Path, tmp_path: Path) -> None:
    config = json.loads(tiny_config.read_text())
    config["vision_cfg"]["width"] = 64
    other_config = tmp_path / "wider-tower.json"
    other_config.write_text(json.dumps(config))
    other, _, _ = load_clip(str(other_config), "random")
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"does not hold the weights of tiny-train.*size mismatch"):
        load_clip(str(tiny_config), tmp_path / "w.safetensors")


def test_no_code_is_run_from_a_pickle(tiny_config: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    torch.save({"state_dict": Harm()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError):
        load_clip(str(tiny_config), tmp_path / "w.pt")
    assert not (tmp_path / "harmed").exists()


def test_unknown_tower_names_close_ones() -> None:
    with pytest.raises(ExportError, match="ViT-B-32"):
        load_clip("ViT-B-23", "random")


def test_unknown_tag_names_the_known_ones() -> None:
    with pytest.raises(ExportError, match="laion2b_s34b_b79k"):
        load_clip("ViT-B-32", "laion9")


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_failed_download_is_one_error_and_quickgelu_follows_the_tag(
    monkeypatch: pytest.MonkeyPatch, tag: str, quick: bool
) -> None:
    import open_clip

    asked: dict[str, Any] = {}

    def without_network(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        raise RuntimeError("Failed to download weights")

    monkeypatch.setattr(open_clip, "create_model", without_network)
    with pytest.raises(ExportError, match=r"could not be downloaded.*--pretrained PATH") as caught:
        load_clip("ViT-B-32", tag)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert asked["pretrained"] == tag
    assert asked["force_quick_gelu"] is quick
    assert asked["require_pretrained"], "weights that silently stay random would be scored with"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "is not a model configuration"), ('{"embed_dim": 3}', "needs embed_dim, vision")],
)
def test_bad_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        load_clip(str(tmp_path / "bad.json"), "random")


def test_a_configuration_cannot_take_anothers_name(tmp_path: Path, tiny_config: Path) -> None:
    path = tmp_path / "ViT-B-32.json"
    path.write_text(tiny_config.read_text())
    with pytest.raises(ExportError, match="another tower is already called ViT-B-32"):
        load_clip(str(path), "random")


def test_import_needs_no_torchvision_operators() -> None:
    """In a process of its own: whatever torchvision is installed, open_clip can be imported, twice, and works."""
    code = (
        "from declip_training.model.torchvision_ops import ensure_importable as e; e(); e(); "
        "import open_clip, torchvision.transforms as t; t.Resize(3); print('fine')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "fine\n", result.stderr


def test_the_bundled_tower_is_known_to_open_clip() -> None:
    clip, _, preprocess = load_clip(str(MODEL_CONFIG), "random")
    trunk = clip.visual.trunk
    pictures = torch.randn(1, 3, preprocess.size, preprocess.size)
    sides: list[int] = []
    for layer in (*trunk.detail, trunk.conv_head):
        layer.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    with torch.no_grad():
        assert trunk(pictures).shape == (1, trunk.num_features)
        assert clip.encode_image(pictures).shape == (1, 256)
        half = clip.visual.bfloat16()(pictures.bfloat16())  # as some run it: all weights in half precision
        assert half.dtype == torch.bfloat16
    assert preprocess.size == 384
    assert sides[:5] == [192, 96, 48, 24, 6]
    weights = sum(p.numel() for p in clip.visual.parameters())
    assert 2 * weights < 13e6, "stored as FP16 beside two projectors an engine must stay below 15 MB"
