"""From loaded models to an engine file, its parity with diffusers, and pictures made with what is in it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from declip_export.fold import ExportTower
from declip_export.generator import engine as engine_module
from declip_export.generator import parity
from declip_export.generator.adapter import load_adapter
from declip_export.generator.base import Base
from declip_export.generator.components import components_of
from declip_export.generator.embedder import embedder_of
from declip_export.generator.engine import export_generator
from declip_export.generator.library import library
from declip_export.generator.lora import fuse_lora
from declip_export.generator.parity import GeneratorParity, markdown, relative_error, require_parity
from declip_export.generator.references import computing_in_fp32, reference_cases
from declip_export.generator.sizes import picture_sizes
from declip_export.generator.tokenizers import tokenizers_of
from declip_runtime.backends import choose
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import ExportError, UsageError
from declip_runtime.signature import Range

from . import tiny
from .conftest import EACH_FAMILY, FAMILIES, Loaded, Tiny, load

COMPONENTS = ("text_encoder", "image_encoder", "image_tokens", "vae_decoder", "unet")
CASES = {"one strength", "strengths by block", "two conditions of two pictures"}


@pytest.fixture(scope="module")
def halves(models: Tiny) -> dict[str, Loaded]:
    return {family: load(models, family, "float16") for family in FAMILIES}


@pytest.fixture(scope="module")
def engines(halves: dict[str, Loaded], tmp_path_factory: pytest.TempPathFactory) -> dict[str, EngineFile]:
    """Each family with FP16 storage, its size fixed, compared with diffusers."""
    folder = tmp_path_factory.mktemp("engines")

    class Exported(dict[str, EngineFile]):
        def __missing__(self, family: str) -> EngineFile:  # XL only where the second tier asks for it
            loaded = halves[family]
            path = folder / f"{family}.engine"
            self[family] = export_generator(loaded.base, loaded.adapter, loaded.embedder, path)
            return self[family]

    return Exported()


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_the_manifest_says_what_the_models_are(models: Tiny, engines: dict[str, EngineFile], family: str) -> None:
    engine = EngineFile.open(engines[family].path)
    engine.verify()
    manifest = engine.generator
    base = models.base(family)  # type: ignore[arg-type]
    unet = base.pipeline.unet
    assert (manifest.name, manifest.family, manifest.weights_dtype) == (family, family, "float16")
    assert set(manifest.graphs) == {f"{name}-{kind}" for name in COMPONENTS for kind in ("fp32", "fp16")}
    assert [f"{layer}.processor" for layer in manifest.layers] == [n for n in unet.attn_processors if "attn2" in n]
    assert (manifest.height, manifest.width, manifest.vae_scale, manifest.embedding_dim) == (
        128,
        128,
        8,
        tiny.EMBEDDING,
    )
    assert manifest.scheduler["_class_name"] == type(base.pipeline.scheduler).__name__
    rebuilt = type(base.pipeline.scheduler).from_config(dict(manifest.scheduler))
    assert {k: v for k, v in rebuilt.config.items() if k[0] != "_"} == {
        k: v for k, v in base.pipeline.scheduler.config.items() if k[0] != "_"
    }
    assert manifest.zero_negative is (family == "sdxl")
    assert set(manifest.text_inputs) == ({"input_ids"} if family == "sd" else {"input_ids", "input_ids_2"})
    assert manifest.components["unet"].inputs["sample"].shape == ("batch", 4, 16, 16)
    assert manifest.components["vae_decoder"].outputs["images"].shape == ("batch", 128, 128, 3)
    assert set(manifest.components["unet"].free) == {"batch", "conditions", "tokens"}
    text = json.dumps(manifest.to_dict())
    assert str(models.folders[family].parent) not in text, "nobody's paths"
    assert manifest.provenance["adapter"] == models.adapters[family].name
    assert manifest.provenance["projector_sha256"]
    assert manifest.provenance["versions"]["diffusers"]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_every_component_was_compared_in_every_way(engines: dict[str, EngineFile], family: str) -> None:
    rows = [GeneratorParity(**row) for row in engines[family].generator.provenance["parity"]]
    assert all(row.passed for row in rows)
    for name in COMPONENTS:
        subjects = {row.subject for row in rows if row.component == name}
        assert {"fp32 graph, emulated", "fp16 graph, emulated"} <= subjects
        for backend in ("OpenVINO", "ONNX Runtime"):
            assert any(backend in subject and "fp32" in subject for subject in subjects)
    assert {row.case for row in rows if row.component == "unet"} == CASES
    exact = [row.relative_error for row in rows if row.bar == "exact"]
    assert 0 < max(exact) < 2e-5, "far better than the bar, at this size"
    assert "| unet | two conditions of two pictures |" in markdown(rows, "title")


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_the_engine_computes_what_the_loaded_models_do(
    halves: dict[str, Loaded], engines: dict[str, EngineFile], family: str
) -> None:
    """Through the runtime's own backends, at the fixed size, against the FP32 modules with the stored weights."""
    loaded, engine = halves[family], engines[family]
    cases = reference_cases(loaded.base, loaded.adapter, loaded.embedder, "float16", (16, 16))
    assert {case.component for case in cases} == set(COMPONENTS)
    for case in cases:
        with closing(choose(engine, "onnxruntime", component=case.component, precision="fp32")) as backend:
            found = backend.compute(case.feeds)
        assert set(found) == set(case.wanted)
        for name, wanted in case.wanted.items():
            assert relative_error(found[name], wanted) < 1e-4


@pytest.mark.slow
def test_sdxl_decodes_in_fp32_whatever_the_graph(engines: dict[str, EngineFile]) -> None:
    """It asks for it itself (force_upcast): real pictures overflow, which made-up latents do not show."""
    for family, same in (("sd", False), ("sdxl", True)):
        engine = engines[family]
        fp32, fp16 = (engine.read(engine.manifest.graphs[f"vae_decoder-{kind}"]) for kind in ("fp32", "fp16"))
        assert (fp32 == fp16) is same


def test_free_sizes_fp32_storage_and_no_fp16(models: Tiny, tmp_path: Path) -> None:
    loaded = load(models, "sd")
    told: list[str] = []
    engine = export_generator(
        loaded.base, loaded.adapter, loaded.embedder, tmp_path / "x.engine",
        weights_dtype="float32", fp16=False, height=Range(64, 128, 192), width=128, steps=4, guidance=1.0, name="fast",
        parity=False, provenance={"note": "kept"}, progress=told.append,
    )  # fmt: skip
    manifest = engine.generator
    assert manifest.components["unet"].free["height"] == Range(8, 16, 24)
    assert manifest.components["unet"].inputs["sample"].shape == ("batch", 4, "height", 16)
    assert (manifest.name, manifest.steps, manifest.guidance, manifest.weights_dtype) == ("fast", 4, 1.0, "float32")
    assert set(manifest.graphs) == {f"{name}-fp32" for name in COMPONENTS}
    assert "parity" not in manifest.provenance
    assert manifest.provenance["note"] == "kept"
    assert any("unet" in text for text in told)
    with closing(choose(engine, "openvino", component="vae_decoder", precision="fp32")) as backend:
        for height in (8, 24):
            latents = np.random.default_rng(0).normal(size=(1, 4, height, 16)).astype(np.float32)
            with torch.no_grad():
                decoded = loaded.base.pipeline.vae.decode(torch.from_numpy(latents) / 0.18215).sample
            wanted = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
            assert relative_error(backend.compute({"latents": latents})["images"], wanted) < 1e-4


def test_a_pipeline_that_was_never_saved(models: Tiny, tmp_path: Path) -> None:
    """Whose scheduler's configuration does not name its class, and may hold arrays."""
    betas = np.linspace(1e-4, 0.02, 1000, dtype=np.float32)
    scheduler = library("diffusers").LCMScheduler(trained_betas=betas)
    base = Base(tiny.pipeline(tmp_path / "source", scheduler=scheduler), "sd", "memory")
    adapter = load_adapter(models.adapters["sd"], base)
    engine = export_generator(
        base, adapter, models.embedder(), tmp_path / "x.engine", weights_dtype="float32", fp16=False, parity=False
    )
    assert engine.generator.scheduler["_class_name"] == "LCMScheduler"
    np.testing.assert_allclose(engine.generator.scheduler["trained_betas"], betas)


@pytest.mark.slow
def test_a_tower_that_is_no_vision_transformer(halves: dict[str, Loaded], small: Any, tmp_path: Path) -> None:
    """Goes through torch's exporter, and into the engine with FP16 weights all the same."""
    loaded, model = halves["sd"], small("timm-convnext")
    body = ExportTower(model.declip.visual, model.preprocess)
    embedder = embedder_of(body, model.preprocess, "convnext", "random", model.declip.perceptual)
    engine = export_generator(loaded.base, loaded.adapter, embedder, tmp_path / "x.engine")
    rows = [GeneratorParity(**row) for row in engine.generator.provenance["parity"]]
    assert any(row.component == "image_encoder" and row.bar == "half" for row in rows)
    plain = export_generator(loaded.base, loaded.adapter, loaded.embedder, tmp_path / "y.engine", parity=False)
    added = sum(p.numel() for p in embedder.encoder.parameters()) - sum(
        p.numel() for p in loaded.embedder.encoder.parameters()
    )
    weights = [made.manifest.entries["weights.bin"].size for made in (engine, plain)]
    assert weights[0] - weights[1] < 2.1 * added


def test_the_same_models_give_the_same_engine(models: Tiny, engines: dict[str, EngineFile], tmp_path: Path) -> None:
    loaded = load(models, "sd", "float16")
    again = export_generator(loaded.base, loaded.adapter, loaded.embedder, tmp_path / "x.engine", parity=False)
    assert again.id == engines["sd"].id
    other = models.base("sd", "float16")
    fused = fuse_lora(other, tiny.save_lora(other.pipeline.unet, tmp_path / "lora.safetensors"), 0.5)
    adapter = load_adapter(models.adapters["sd"], fused)
    changed = export_generator(fused, adapter, loaded.embedder, tmp_path / "y.engine", parity=False, fp16=False)
    assert changed.id != again.id
    assert changed.generator.provenance["loras"] == [
        {"source": "lora.safetensors", "strength": 0.5, "changed": ["unet"]}
    ]


def test_no_weight_is_changed(halves: dict[str, Loaded], engines: dict[str, EngineFile], models: Tiny) -> None:
    """What was exported above is still what was loaded, in its type."""
    assert engines
    fresh = load(models, "sd", "float16")
    for part in ("unet", "vae", "text_encoder"):
        after, before = (getattr(m.base.pipeline, part).state_dict() for m in (halves["sd"], fresh))
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert {t.dtype for t in after.values() if t.is_floating_point()} == {torch.float16}


def test_a_miss_of_a_bar_is_an_error_and_leaves_no_engine(
    halves: dict[str, Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = halves["sd"]
    monkeypatch.setattr(parity, "_ON_CPU", ())
    monkeypatch.setitem(parity.LIMITS, "half", 1e-9)
    with pytest.raises(ExportError, match=r"fp16 graph, emulated differs from diffusers by .*--no-fp16"):
        export_generator(loaded.base, loaded.adapter, loaded.embedder, tmp_path / "x.engine")
    assert not list(tmp_path.iterdir())
    broken = engine_module.emit

    def wrong(module: Any, *rest: Any) -> Any:
        graph = broken(module, *rest)
        if "norm_out.bias" in graph.constants:
            graph.constants["norm_out.bias"] = graph.constants["norm_out.bias"] + np.float16(0.5)
        return graph

    monkeypatch.setattr(engine_module, "emit", wrong)
    with pytest.raises(ExportError, match="report the models and the versions"):
        export_generator(loaded.base, loaded.adapter, loaded.embedder, tmp_path / "x.engine", fp16=False)


def test_the_table_of_models_by_name(
    models: Tiny, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "_ON_CPU", ())
    given = ["--base", str(models.folders["sd"]), "--adapter", str(models.adapters["sd"]), "--folder", str(tmp_path)]
    given += ["--checkpoint", str(models.projectors), "--tower", str(models.tower)]
    assert parity.main(given) == 0
    assert "| unet | strengths by block | fp16 graph, emulated |" in capsys.readouterr().out
    monkeypatch.setitem(parity.LIMITS, "exact", 0.0)
    assert parity.main(given) == 1
    assert "differs from diffusers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_without_a_bar_must_be_finite() -> None:
    row = GeneratorParity("unet", "case", "bf16", 0.5, None)
    require_parity([row])
    with pytest.raises(ExportError, match="differs from diffusers by nan"):
        require_parity([row, replace(row, relative_error=float("nan"))])
    assert not GeneratorParity("unet", "case", "x", float("nan"), "exact").passed


def test_what_cannot_be_exported_is_said_first(models: Tiny, halves: dict[str, Loaded], tmp_path: Path) -> None:
    loaded = halves["sd"]
    models_of = (loaded.base, loaded.adapter, loaded.embedder)
    with pytest.raises(UsageError, match="does not exist"):
        export_generator(*models_of, tmp_path / "no" / "x.engine")
    with pytest.raises(UsageError, match="is a folder"):
        export_generator(*models_of, tmp_path)
    with pytest.raises(UsageError, match=r"height 100 is no multiple of 16.*Nearest: 96 or 112"):
        export_generator(*models_of, tmp_path / "x.engine", height=100)
    with pytest.raises(UsageError, match="loaded in FP16"):
        export_generator(*models_of, tmp_path / "x.engine", weights_dtype="float32")
    narrow = torch.nn.Flatten()
    narrow.forward = lambda x: x.flatten(1)[:, :7].float()  # type: ignore[method-assign]
    embedder = embedder_of(narrow, loaded.embedder.preprocess, "Narrow", "random")
    with pytest.raises(ExportError, match="width 32, Narrow gives 7"):
        export_generator(loaded.base, loaded.adapter, embedder, tmp_path / "x.engine")
    assert not list(tmp_path.iterdir())


def test_sizes(halves: dict[str, Loaded]) -> None:
    base = halves["sd"].base
    sizes = picture_sizes(base, 8, 8, Range(256, 512, 768), None)
    assert (sizes.height, sizes.width) == (512, 128)
    assert sizes.latents == {"height": Range(32, 64, 96), "width": Range(16, 16, 16)}
    for wrong in (0, -64, Range(512, 256, 768), Range(64, 128, 100)):
        with pytest.raises(UsageError, match=r"ranges over|no multiple"):
            picture_sizes(base, 8, 8, wrong, None)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_tokenizers_give_the_pipelines_ids(halves: dict[str, Loaded], family: str) -> None:
    """With cutting and padding as a runtime sets them."""
    base = halves[family].base
    texts = ["", "a photo of the others", "Größe — 写真 " * 30, "UPPER  case,\twith   spaces!"]
    sources = [base.pipeline.tokenizer, *([base.pipeline.tokenizer_2] if family == "sdxl" else [])]
    for (name, (data, pad)), source in zip(tokenizers_of(base).items(), sources, strict=True):
        assert name in ("input_ids", "input_ids_2")
        tokenizer = library("tokenizers").Tokenizer.from_str(data.decode())
        assert tokenizer.truncation is None
        assert tokenizer.padding is None
        tokenizer.enable_truncation(tiny.LENGTH)
        tokenizer.enable_padding(pad_id=pad, length=tiny.LENGTH)
        found = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        assert found == source(texts, padding="max_length", max_length=tiny.LENGTH, truncation=True).input_ids


def test_fp16_weights_are_converted_while_a_layer_runs(models: Tiny) -> None:
    """FP32 results from FP16 weights, which are back afterwards, also after an error and within another conversion."""
    half, full = (models.base("sd", dtype).pipeline.unet for dtype in ("float16", "float32"))
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.copy_(parameter.half())
    generator = torch.Generator().manual_seed(0)
    sample, text = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.randn(1, 77, tiny.TEXT_WIDTH, generator=generator),
    )
    with torch.no_grad():
        wanted = full(sample, 7, encoder_hidden_states=text).sample
        with computing_in_fp32(half, "float16"), computing_in_fp32(half, "float16"):
            found = half(sample, 7, encoder_hidden_states=text).sample
            with pytest.raises(RuntimeError, match="to have 4 channels"):
                half(sample[:, :3], 7, encoder_hidden_states=text)
    assert torch.equal(found, wanted)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    with pytest.raises(RuntimeError, match="type"):
        half(sample, 7, encoder_hidden_states=text)


@torch.no_grad()
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_pictures_of_the_pipeline(models: Tiny, family: Any) -> None:
    """Three guided steps with an image, by our modules and by diffusers' pipeline: conventions fit together."""
    loaded = load(models, family)
    pipeline, steps, guidance = loaded.base.pipeline, 3, 5.0
    pipeline.set_progress_bar_config(disable=True)
    modules = {c.name: c.module for c in components_of(loaded.base, loaded.adapter, loaded.embedder)}
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    embedding = torch.randn(1, tiny.EMBEDDING, generator=generator)
    pipeline.set_ip_adapter_scale(0.6)
    guided = torch.stack([torch.zeros(1, tiny.EMBEDDING), embedding])
    wanted = pipeline(
        "a photo of the moon", negative_prompt="blurry", height=64, width=64, num_inference_steps=steps,
        guidance_scale=guidance, latents=noise.clone(), ip_adapter_image_embeds=[guided], output_type="np",
    ).images  # fmt: skip

    found = _picture(loaded.base, modules, noise, embedding, steps, guidance)
    assert found.shape == wanted.shape == (1, 64, 64, 3)
    assert np.abs(found - wanted).max() < 1e-4
    other = _picture(loaded.base, modules, noise, -embedding, steps, guidance)
    assert np.abs(other - wanted).max() > 1e-3, "the image is seen"


def _picture(base: Base, modules: dict[str, Any], noise: Any, embedding: Any, steps: int, guidance: float) -> Any:
    texts = ["blurry", "a photo of the moon"]
    tokenizers = [base.pipeline.tokenizer, *([base.pipeline.tokenizer_2] if base.family == "sdxl" else [])]
    options = {"padding": "max_length", "max_length": tiny.LENGTH, "truncation": True, "return_tensors": "pt"}
    text = modules["text_encoder"](*(tokenizer(texts, **options).input_ids for tokenizer in tokenizers))
    feeds = {"text": text}
    if base.family == "sdxl":
        feeds = {"text": text[0], "pooled": text[1], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    feeds["image_tokens"] = modules["image_tokens"](torch.cat([0 * embedding, embedding]))[:, None]
    feeds["scale"] = torch.full((2, 1, len(modules["unet"].layers)), 0.6)
    scheduler = base.pipeline.scheduler
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        without, given = modules["unet"](sample=sample, timestep=timestep.float().repeat(2), **feeds).chunk(2)
        latents = scheduler.step(without + guidance * (given - without), timestep, latents).prev_sample
    return modules["vae_decoder"](latents).numpy()
