"""Loading base models, adapters, LoRAs and towers, and what is said of those that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from declip_export.generator import hub
from declip_export.generator.adapter import load_adapter
from declip_export.generator.base import Base, load_base
from declip_export.generator.embedder import load_embedder
from declip_export.generator.library import library
from declip_export.generator.lora import fuse_lora
from declip_runtime.errors import CheckpointError, ExportError
from declip_training.model.checkpoint import ProjectorCheckpoint, save_projectors
from declip_training.model.projector import Projector

from . import tiny
from .conftest import EACH_FAMILY, FAMILIES, Tiny
from .single_file import as_single_file

# --- base models


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_is_recognised_and_weights_are_held_as_asked(models: Tiny, family: Any) -> None:
    for dtype, wanted in (("float16", torch.float16), ("float32", torch.float32)):
        base = load_base(models.folders[family], dtype=dtype)
        assert base.family == family
        assert {p.dtype for p in base.pipeline.unet.parameters()} == {wanted}
        assert base.text_width == base.pipeline.unet.config.cross_attention_dim


def test_one_checkpoint_file(models: Tiny, tmp_path: Path) -> None:
    """In the naming of Stable Diffusion's training code, read with the configuration of a folder."""
    wanted = models.base("sd")
    path = as_single_file(wanted.pipeline, tmp_path / "model.safetensors")
    base = load_base(path, dtype="float32", config=str(models.folders["sd"]))
    assert base.family == "sd"
    for part in ("unet", "vae", "text_encoder"):
        tensors = getattr(base.pipeline, part).state_dict()
        for name, tensor in getattr(wanted.pipeline, part).state_dict().items():
            if not name.startswith(("encoder.down", "encoder.mid", "encoder.conv", "quant_conv")):
                assert torch.equal(tensors[name], tensor), name


def edited(models: Tiny, tmp_path: Path, changes: dict[str, Any]) -> Path:
    folder = tmp_path / "edited"
    shutil.copytree(models.folders["sd"], folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "StableDiffusion3Pipeline", "unet": None},
        {
            "_class_name": "AltDiffusionPipeline",
            "text_encoder": ["alt_diffusion", "RobertaSeriesModelWithTransformation"],
        },
        {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]},
        {"_class_name": "TinyPipeline", "vae": ["diffusers", "AutoencoderTiny"]},
        {"_class_name": "OddPipeline", "text_encoder_2": ["transformers", "T5EncoderModel"]},
    ],
)
def test_other_pipelines_are_refused_by_name(models: Tiny, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=f"is a {changes['_class_name']}.*(Supported are|Give its base model)"):
        load_base(edited(models, tmp_path, changes))


def test_a_missing_folder_or_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(library("diffusers").DiffusionPipeline, "load_config", no_network)
    with pytest.raises(ExportError, match=r"there is no base model nobody/nothing: We couldn't connect.*Give a folder"):
        load_base("nobody/nothing")


def test_a_gated_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    class GatedRepoError(OSError):
        """As the hub's, whose constructor wants a response."""

    def gated(*_: Any, **__: Any) -> None:
        try:
            raise GatedRepoError("403")
        except GatedRepoError:
            raise OSError("is not a valid model identifier")  # noqa: B904 - as diffusers does

    monkeypatch.setattr(library("diffusers").DiffusionPipeline, "load_config", gated)
    with pytest.raises(ExportError, match=r"gated: its licence.*https://huggingface.co/some/model.*hf auth login"):
        load_base("some/model")


def test_a_damaged_or_incomplete_folder(models: Tiny, tmp_path: Path) -> None:
    folder = edited(models, tmp_path, {})
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"cannot be loaded as a Stable Diffusion.*download it again"):
        load_base(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(ExportError, match="cannot be loaded as a Stable Diffusion"):
        load_base(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(ExportError, match="model_index"):
        load_base(folder)


def test_files_that_are_no_whole_model(models: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(ExportError, match=r"cannot be read.*download it again"):
        load_base(path)
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, path)
    with pytest.raises(ExportError, match="its text encoder is missing"):
        load_base(path)
    save_file({"conditioner.embedders.0.model.ln_final.bias": torch.zeros(4)}, path)
    with pytest.raises(ExportError, match="refiner"):
        load_base(path)
    torch.save([1, 2], tmp_path / "x.ckpt")
    with pytest.raises(ExportError, match="no whole Stable Diffusion"):
        load_base(tmp_path / "x.ckpt")
    with pytest.raises(ExportError, match="only those need a configuration"):
        load_base(models.folders["sd"], config="somewhere")


# --- adapters


@pytest.fixture(scope="module")
def bases(models: Tiny) -> dict[str, Base]:
    return {family: models.base(family) for family in FAMILIES}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("embedding", [32, 40])
def test_adapters_of_both_forms_and_any_width(
    bases: dict[str, Base], tmp_path: Path, suffix: str, embedding: int
) -> None:
    unet = bases["sd"].pipeline.unet
    state = tiny.adapter_state(unet, embedding)
    adapter = load_adapter(tiny.save_adapter(state, tmp_path / f"adapter.{suffix}"), bases["sd"])
    assert (adapter.width, adapter.text_width) == (embedding, tiny.TEXT_WIDTH)
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    assert torch.equal(projection.image_embeds.weight, state["image_proj"]["proj.weight"])
    name = next(n for n in unet.attn_processors if n.endswith("attn2.processor"))
    assert torch.equal(unet.attn_processors[name].to_k_ip[0].weight, state["ip_adapter"]["1.to_k_ip.weight"])


def test_adapters_are_found_in_folders_and_on_the_hub(
    models: Tiny, bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.adapters["sd"]
    assert load_adapter(f"{path.parent}:{path.name}", bases["sd"]).width == tiny.EMBEDDING
    asked = []

    def download(place: str, name: str) -> str:
        asked.append((place, name))
        return str(path)

    monkeypatch.setattr(library("huggingface_hub"), "hf_hub_download", download)
    load_adapter("h94/IP-Adapter:models/ip-adapter_sd15.safetensors", bases["sd"])
    assert asked == [("h94/IP-Adapter", "models/ip-adapter_sd15.safetensors")]


def test_adapters_that_are_nowhere(models: Tiny, bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.adapters["sd"].parent
    for source, message in (
        ("nowhere.bin", "names no file"),
        (str(folder), "names no file"),
        (f"{folder}:nothing.bin", f"no file nothing.bin in {folder}"),
    ):
        with pytest.raises(ExportError, match=message):
            load_adapter(source, bases["sd"])

    def offline(*_: Any) -> None:
        raise OSError("offline")

    monkeypatch.setattr(library("huggingface_hub"), "hf_hub_download", offline)
    with pytest.raises(ExportError, match="neither be found here nor downloaded: offline"):
        hub.local_file("a/b:c.bin", "Do something else")


OTHER_KINDS = {
    "an IP-Adapter Plus": {"latents": torch.zeros(1, 16, 8), "proj_in.weight": torch.zeros(8, 8)},
    "a Full Face adapter": {"proj.0.weight": torch.zeros(8, 8), "proj.3.weight": torch.zeros(8)},
    "a FaceID adapter": {"proj.0.weight": torch.zeros(8, 8), "norm.weight": torch.zeros(8)},
    "a FaceID Plus adapter": {"perceiver_resampler.proj_in.weight": torch.zeros(8, 8), "proj.0.weight": torch.zeros(8)},
    "an adapter of no known kind": {"something.weight": torch.zeros(8, 8)},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_adapters_are_refused_by_name(bases: dict[str, Base], tmp_path: Path, kind: str) -> None:
    state = {**tiny.adapter_state(bases["sd"].pipeline.unet), "image_proj": OTHER_KINDS[kind]}
    with pytest.raises(ExportError, match=f"is {kind}.*Only standard ones are supported.*ip-adapter_sd15"):
        load_adapter(tiny.save_adapter(state, tmp_path / "adapter.bin"), bases["sd"])


def test_an_adapter_with_more_tokens(bases: dict[str, Base], tmp_path: Path) -> None:
    state = tiny.adapter_state(bases["sd"].pipeline.unet, tokens=16)
    with pytest.raises(ExportError, match="makes 16 image tokens, supported are 4"):
        load_adapter(tiny.save_adapter(state, tmp_path / "adapter.bin"), bases["sd"])


def test_an_adapter_for_another_base_model(models: Tiny, bases: dict[str, Base], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="makes image tokens of width 64, this base model's UNet takes 32"):
        load_adapter(models.adapters["sdxl"], bases["sd"])
    other = tiny.unet(block_out_channels=(32, 96))
    path = tiny.save_adapter(tiny.adapter_state(other), tmp_path / "adapter.bin")
    other = Base(tiny.pipeline(tmp_path, unet=tiny.unet(block_out_channels=(64, 64))), "sd", "another")
    with pytest.raises(ExportError, match=r"for another UNet: 1.to_k_ip.weight is \[32, 32\].*needs \[64, 32\]"):
        load_adapter(path, other)
    fewer = tiny.adapter_state(bases["sd"].pipeline.unet)
    del fewer["ip_adapter"]["3.to_v_ip.weight"]
    with pytest.raises(ExportError, match=r"3.to_v_ip.weight is none"):
        load_adapter(tiny.save_adapter(fewer, tmp_path / "fewer.safetensors"), bases["sd"])


@pytest.mark.parametrize("content", [b"junk", b"", None])
def test_files_that_are_no_adapter(bases: dict[str, Base], tmp_path: Path, content: bytes | None) -> None:
    for name in ("x.bin", "x.safetensors"):
        if content is None:
            tiny.save_adapter({"other": {"weight": torch.zeros(2)}}, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ExportError, match=r"is no IP-Adapter|cannot be read"):
            load_adapter(tmp_path / name, bases["sd"])


def test_no_pickle_is_executed(bases: dict[str, Base], tmp_path: Path) -> None:
    import pickle

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "x.bin").write_bytes(pickle.dumps({"image_proj": Harm()}))
    with pytest.raises(ExportError, match="cannot be read"):
        load_adapter(tmp_path / "x.bin", bases["sd"])
    assert not (tmp_path / "executed").exists()


def test_a_tower_of_another_width_is_named_with_both_widths(
    models: Tiny, bases: dict[str, Base], tmp_path: Path
) -> None:
    state = tiny.adapter_state(bases["sd"].pipeline.unet, 1024)
    adapter = load_adapter(tiny.save_adapter(state, tmp_path / "adapter.bin"), bases["sd"])
    with pytest.raises(ExportError, match=r"width 1024, ViT-B-32 gives 512.*ViT-H-14"):
        adapter.require_width(512, "ViT-B-32")
    adapter.require_width(1024, "ViT-H-14")


# --- LoRAs


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_fused_lora_is_the_lora(models: Tiny, tmp_path: Path, family: Any, strength: float) -> None:
    beside, base = models.base(family), models.base(family)
    path = tiny.save_lora(base.pipeline.unet, tmp_path / "lora.safetensors")
    plain = base.pipeline.unet.state_dict()["conv_in.weight"].clone()
    fused = fuse_lora(base, path, strength)
    assert fused.loras[0]["strength"] == strength
    assert fused.loras[0]["changed"] == ["unet"]
    beside.pipeline.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="x")
    beside.pipeline.set_adapters(["x"], [strength])
    found, wanted, without = (
        noise(b) for b in (fused.pipeline.unet, beside.pipeline.unet, models.base(family).pipeline.unet)
    )
    assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert float((found - without).abs().max()) > 1e-2 * float(wanted.abs().max())
    assert torch.equal(plain, fused.pipeline.unet.state_dict()["conv_in.weight"])
    assert not any("lora" in name for name in fused.pipeline.unet.state_dict())


@torch.no_grad()
def noise(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample, text = (
        torch.randn(s, generator=generator) for s in ((1, 4, 8, 8), (1, 77, unet.config.cross_attention_dim))
    )
    added = {"text_embeds": torch.ones(1, tiny.POOLED), "time_ids": torch.ones(1, 6)}
    result: torch.Tensor = unet(sample, 300, encoder_hidden_states=text, added_cond_kwargs=added).sample
    return result


def test_loras_that_cannot_be_fused(models: Tiny, bases: dict[str, Base], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ExportError, match="names no file"):
        fuse_lora(bases["sd"], tmp_path / "missing.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ExportError, match="cannot be fused"):
        fuse_lora(models.base("sd"), tmp_path / "junk.safetensors")
    save_file({"some.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ExportError, match=r"cannot be fused|changes nothing"):
        fuse_lora(models.base("sd"), tmp_path / "other.safetensors")
    parts = {f"transformer.block.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    save_file(parts, tmp_path / "transformer.safetensors")
    with pytest.raises(ExportError, match=r"changes nothing in .*made for this base model"):
        fuse_lora(models.base("sd"), tmp_path / "transformer.safetensors")
    foreign = tiny.save_lora(bases["sdxl"].pipeline.unet, tmp_path / "sdxl.safetensors")
    with pytest.raises(ExportError, match=r"cannot be fused|changes nothing"):
        fuse_lora(models.base("sd"), foreign)


# --- towers and projectors


def test_the_checkpoint_names_its_tower(models: Tiny) -> None:
    embedder = load_embedder(checkpoint=models.projectors)
    assert embedder.projected
    assert (embedder.tower, embedder.pretrained, embedder.dim) == ("tiny-tower", "random", tiny.EMBEDDING)
    assert {p.dtype for p in embedder.encoder.parameters()} == {torch.float16}


def test_without_projectors_all_three_are_the_towers(models: Tiny) -> None:
    embedder = load_embedder(str(models.tower), "random", dtype="float32")
    assert not embedder.projected
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    identity, perceptual, semantic = embedder.encoder(images)
    assert torch.equal(identity, perceptual)
    assert torch.equal(identity, semantic)


def test_projectors_of_another_tower(models: Tiny, tmp_path: Path) -> None:
    foreign = ProjectorCheckpoint("other", "random", "0" * 64, Projector(32, 48), Projector(32, 48))
    save_projectors(tmp_path / "foreign.safetensors", foreign)
    with pytest.raises(CheckpointError, match="Use --tower other"):
        load_embedder(str(models.tower), "random", tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_embedder(checkpoint=tmp_path / "missing.safetensors")
    with pytest.raises(ExportError, match="no tower is named"):
        load_embedder(pretrained="random")


def test_weights_beyond_fp16_are_refused(models: Tiny, tmp_path: Path) -> None:
    from declip_export.generator.embedder import embedder_of

    encoder = models.embedder().encoder
    with torch.no_grad():
        next(iter(encoder.tower.parameters())).mul_(1e9)
    with pytest.raises(ExportError, match=r"does not fit FP16.*--weights float32"):
        embedder_of(encoder.tower, models.embedder().preprocess, "x", "random")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ExportError, match=r"pip install 'declip-sdk\[generate\]'"):
        library("peft")
