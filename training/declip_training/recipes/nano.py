"""The bundled model, from public data to checkpoints, resumable: `declip recipe nano` runs it and exports the engine.

Every stage leaves its result in the output folder and is skipped when that is there, so a run that was killed goes on
where it stopped. Choices (projector step, prompts) are made on a validation split of BIQ2021's Train; Test is not read.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.manifest import Preprocess
from declip_runtime.scorer_manifest import ScoreSpec, Validation
from declip_training.arithmetic import CPU
from declip_training.attributes import percentiles
from declip_training.calibration import fit_calibration
from declip_training.coop import CoopConfig, learn_context
from declip_training.data.batches import BatchShape, BatchSource
from declip_training.data.descriptions import ANTONYMS
from declip_training.data.distortions import DISTORTIONS
from declip_training.features import tower_features
from declip_training.files import replacing, write_json
from declip_training.linear_head import fit_linear_head
from declip_training.losses import antonym_logit
from declip_training.model.checkpoint import (
    ProjectorCheckpoint,
    load_projectors,
    save_projectors,
    tower_probe,
    tower_sha256,
)
from declip_training.model.declip import DeCLIP
from declip_training.model.imagenet_start import LITE0, standardise, start_from_imagenet
from declip_training.model.nano_tower import NanoTower
from declip_training.model.projector import Projector
from declip_training.model.prompts import PromptSet, ScorePrompts
from declip_training.model.text_encoding import encode_texts
from declip_training.model.tower import Tokenizer, load_clip
from declip_training.objective import context_loss
from declip_training.pixels import to_input
from declip_training.pretrain import PretrainConfig, pretrain, pretrained
from declip_training.projectors import ProjectorConfig, TextEncoder, train_projectors
from declip_training.recipes.nano_attributes import learn_attributes
from declip_training.recipes.nano_data import SIDE, Banks, Sources, fingerprints, prepare
from declip_training.recipes.nano_decoupling import decoupling, decoupling_features, to_markdown
from declip_training.recipes.nano_features import FrozenTrunk, Seen
from declip_training.recipes.nano_result import NanoResult
from declip_training.recipes.nano_settings import (
    BANK_PLAN,
    BANK_SHAPE,
    COOP,
    LADDER_PHOTOS,
    LADDER_SEVERITIES,
    READABLE,
    SEVERAL,
    STANDARD_PHOTOS,
    TOWER_SHAPE,
    WORTHWHILE,
)
from declip_training.recipes.nano_teacher import TEACHERS, taught
from declip_training.recipes.nano_validation import ValidationFeatures, ValidationSplit
from declip_training.refit import RatedFeatures, RefitConfig, ReorderConfig, refit, reorder

PRETRAINED, TOWER = "pretrained.safetensors", "clip.safetensors"
MODEL_CONFIG = Path(__file__).with_name("declip-nano.json")
Report = Callable[[str], None]


class Nano:
    """The stages of the recipe over one output folder; networks that look at photos run on ``device``.

    ``workers`` processes make the batches that the tower learns from.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        config: PretrainConfig,
        report: Report,
        device: torch.device = CPU,
        workers: int = 0,
    ) -> None:
        self.sources, self.out, self.config, self.report = Sources(data), out, config, report
        self.device, self.workers = device, workers
        self.seed = config.seed
        self._commit = ""
        for public in TEACHERS:
            public.read()  # what is missing is said before the photos are read
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.seed)
        self.banks: Banks = prepare(self.sources, out / "cache")
        splits = self.banks.splits
        self.validation = ValidationSplit(splits.validation, self.banks.validation, self.sources.validation)
        report(f"{len(splits.fit)} photos to fit, {len(splits.validation)} to choose by")
        self._fit, self._teacher = taught(self.banks, out / "teacher", self.seed, report, device)

    def run(self) -> NanoResult:
        """All stages in order."""
        clip, tokenizer, preprocess = self.tower()
        scale = float(clip.logit_scale.detach().exp())  # type: ignore[operator]
        trunk = self._trunk(clip, preprocess)
        found = Seen(
            trunk.bank(self._source(BANK_SHAPE), self._rests_on(clip)),
            trunk.validation(self.validation),
            trunk.attributes(self.sources, self.banks, self.seed),
        )
        folder = self._folder(clip)
        head = self.refit(clip, tokenizer, trunk.rated(self._fit, self.banks.fit), found, scale, folder)
        seen = found.through(head)
        checkpoint = self.projectors(clip, tokenizer, seen, scale, folder / "projectors.safetensors")
        prompts, card = self.prompts(clip, tokenizer, seen, checkpoint.perceptual, scale)
        card["teacher"] = self._teacher
        card["decoupling"] = self.decoupling(clip, tokenizer, trunk, checkpoint, seen.validation)
        offered, card["attributes"] = self.attributes(clip, tokenizer, seen, checkpoint.perceptual, scale)
        prompts = replace(prompts, scores=(*prompts.scores, *offered))
        save_projectors(self.out / "declip-nano.safetensors", replace(checkpoint, prompts=prompts))
        declip = DeCLIP.from_clip(clip, tokenizer, prompts, checkpoint.perceptual, checkpoint.semantic)
        with torch.no_grad():
            raw = declip.scores(F.normalize(checkpoint.perceptual(seen.validation.rated), dim=-1)).numpy()
        split = "BIQ2021 Train, validation split"
        curves = [fit_calibration(raw[:, 0], self.validation.mos, split)]
        curves += [fit_calibration(column, percentiles(column), f"rank in {split}") for column in raw.T[1:]]
        specs = tuple(replace(s, calibration=c) for s, c in zip(prompts.specs(), curves, strict=True))
        write_json(self.out / "card.json", card)
        made_from = {
            "tower_sha256": checkpoint.tower_sha256,
            "projector_sha256": checkpoint.sha256,
            "started_from": {public.package: public.sha256 for public in TEACHERS},
            "pretraining": {**asdict(self.config), "commit": self._commit},
            "data": fingerprints(self.sources, self.banks),
        }
        return NanoResult(declip, preprocess, specs, prompts, card, np.array(self.banks.validation[:16]), made_from)

    def tower(self) -> tuple[nn.Module, Tokenizer, Preprocess]:
        """Tower, which knew ImageNet, and text tower (moving average), frozen."""
        clip, tokenizer, preprocess = load_clip(str(MODEL_CONFIG), "random")
        trunk: NanoTower = clip.visual.trunk  # type: ignore[assignment,union-attr]
        start_from_imagenet(trunk, LITE0.read(), preprocess.mean, preprocess.std)
        some = self.banks.fit[:: max(1, len(self.banks.fit) // STANDARD_PHOTOS)]
        standardise(trunk, to_input(some, preprocess.mean, preprocess.std))

        def train(model: nn.Module) -> nn.Module:
            return pretrain(
                model,
                tokenizer,
                self._source(TOWER_SHAPE),
                self.config,
                self.out,
                mean=preprocess.mean,
                std=preprocess.std,
                evaluate=lambda average: self._zero_shot(average, tokenizer, preprocess),
                device=self.device,
                workers=self.workers,
            )

        self._commit = pretrained(clip, self.config, self.out / PRETRAINED, train)
        return clip.to(CPU).eval().requires_grad_(False), tokenizer, preprocess

    def refit(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        photos: RatedFeatures,
        found: Seen,
        scale: float,
        folder: Path,
    ) -> nn.Module:
        """The tower's last layer, fitted twice more and put in its place.

        ``clip`` is then kept as all that follows sees it.
        """
        head: nn.Module = clip.visual.head  # type: ignore[assignment,union-attr]
        pair, encode = encode_texts(clip, tokenizer, ANTONYMS[0]), self._encode(clip, tokenizer)

        def evaluate(fitted: nn.Module) -> dict[str, float]:
            return self.validation.agreement(fitted, found.validation, pair)

        def fit(name: str) -> nn.Module:
            given = head, photos, found.bank, encode, scale
            if name == "refit":
                return refit(*given, RefitConfig(), evaluate, self._log(name))
            return reorder(*given, ReorderConfig(), evaluate, self._log(name))

        for name in ("refit", "reorder"):
            path = folder / f"{name}.safetensors"
            if not path.is_file():
                fitted = fit(name)
                with replacing(path) as partial:
                    save_file(fitted.state_dict(), partial)
            head.load_state_dict(load_file(path))
        with replacing(self.out / TOWER) as partial:
            save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, partial)
        return head

    def projectors(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        seen: Seen,
        scale: float,
        path: Path,
    ) -> ProjectorCheckpoint:
        """Projectors on I&2T-style pairs, chosen on validation with the paper's antonyms."""
        visual: nn.Module = clip.visual  # type: ignore[assignment]
        tower = tower_sha256(visual)
        if not path.is_file() or load_projectors(path).tower_sha256 != tower:
            pair = encode_texts(clip, tokenizer, ANTONYMS[0])

            def evaluate(perceptual: nn.Module) -> dict[str, float]:
                return self.validation.agreement(perceptual, seen.validation, pair)

            encode = self._encode(clip, tokenizer)
            perceptual, semantic = train_projectors(
                seen.bank, encode, scale, ProjectorConfig(), evaluate, self._log("projectors")
            )
            made = ProjectorCheckpoint("declip-nano", TOWER, tower, perceptual, semantic, probe=tower_probe(visual))
            save_projectors(path, made)
        return load_projectors(path)

    def prompts(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        seen: Seen,
        perceptual: Projector,
        scale: float,
    ) -> tuple[PromptSet, dict[str, Any]]:
        """The best on validation of readable words, several pairs and CoOp, and the card that compares them."""
        bank, features = seen.bank, seen.validation
        pair = encode_texts(clip, tokenizer, ANTONYMS[0])
        several = torch.stack([encode_texts(clip, tokenizer, p) for p in ANTONYMS])
        context = learn_context(
            clip, tokenizer, ANTONYMS[:1], CoopConfig(), context_loss(bank, perceptual, scale),
            lambda embedded: self.validation.agreement(perceptual, features, embedded)["choice"], self._log("coop"),
        )  # fmt: skip
        learned = encode_texts(clip, tokenizer, ANTONYMS[0], context)
        candidates = {READABLE: pair, SEVERAL: several, COOP: learned}
        agreement = {name: self.validation.agreement(perceptual, features, p, scale) for name, p in candidates.items()}
        linear = fit_linear_head(bank)(features.rated)
        card: dict[str, Any] = {
            "validation": {
                "tower without projectors, readable words": self.validation.agreement(nn.Identity(), features, pair),
                **{f"DeCLIP, {name}": result for name, result in agreement.items()},
                "linear head on the frozen tower": {
                    k: round(v, 4) for k, v in self.validation.by_subset(linear).items()
                },
            },
        }
        chosen = max(agreement, key=lambda name: agreement[name]["choice"])
        if agreement[chosen]["choice"] < agreement[READABLE]["choice"] + WORTHWHILE:
            chosen = READABLE
        card["chosen"] = chosen
        spec = ScoreSpec(
            name="quality",
            kind="quality",
            pairs=ANTONYMS if chosen == SEVERAL else ANTONYMS[:1],
            description="Technical quality: sharpness, noise, exposure, compression. Not aesthetics.",
            validated=Validation(
                "BIQ2021 Train, validation split", round(agreement[chosen]["mean"], 4), len(self.validation.mos),
                "mean of the three per-subset SRCCs; choices were made on these photos",
            ),
        )  # fmt: skip
        return PromptSet((ScorePrompts(spec, context if chosen == COOP else None),), scale), card

    def decoupling(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        trunk: FrozenTrunk,
        checkpoint: ProjectorCheckpoint,
        features: ValidationFeatures,
    ) -> dict[str, dict[str, float]]:
        """How far the two projectors separate looks from content, also written to ``decoupling.md``."""
        head: nn.Module = clip.visual.head  # type: ignore[assignment,union-attr]
        measured = decoupling_features(
            self.banks.captioned_test_pixels,
            SIDE,
            [p.captions[0] for p in self.banks.captioned_test],
            lambda pixels: head(trunk(pixels)),
            self._encode(clip, tokenizer),
        )
        heads = {"tower": nn.Identity(), "perceptual": checkpoint.perceptual, "semantic": checkpoint.semantic}
        pair = encode_texts(clip, tokenizer, ANTONYMS[0])
        table = decoupling(measured, features.rated, self.validation.by_subset, pair, heads)
        with replacing(self.out / "decoupling.md") as partial:
            partial.write_text(to_markdown(table), encoding="utf-8")
        return table

    def attributes(
        self, clip: nn.Module, tokenizer: Tokenizer, seen: Seen, perceptual: Projector, scale: float
    ) -> tuple[tuple[ScorePrompts, ...], dict[str, Any]]:
        """Prompts of the attributes that Kodak's ladders prove selective, and how selective each one was."""
        fit, validation = (ladders.through(perceptual) for ladders in seen.attributes)
        return learn_attributes(clip, tokenizer, fit, validation, scale, lambda name: self._log(f"attribute-{name}"))

    def _trunk(self, clip: nn.Module, preprocess: Preprocess) -> FrozenTrunk:
        trunk: nn.Module = clip.visual.trunk  # type: ignore[assignment,union-attr]
        return FrozenTrunk(copy.deepcopy(trunk).to(self.device), preprocess, self._folder(clip), self.report)

    @staticmethod
    def _encode(clip: nn.Module, tokenizer: Tokenizer) -> TextEncoder:
        def encode(sentences: Sequence[str]) -> Tensor:
            # long captions are cut to the context, as in pre-training
            return F.normalize(clip.encode_text(tokenizer(list(sentences))).float(), dim=-1)  # type: ignore[operator]

        return encode

    def _rests_on(self, clip: nn.Module) -> str:
        """What decides all that the trunk finds."""
        visual: nn.Module = clip.visual  # type: ignore[assignment]
        settings = f"{LADDER_SEVERITIES} {LADDER_PHOTOS} {tuple(DISTORTIONS)}"
        return f"{tower_sha256(visual)} {BANK_PLAN} {BANK_SHAPE.to_json()} {settings}"

    def _folder(self, clip: nn.Module) -> Path:
        """Where results are kept that rest on this tower and these settings, apart from those of others."""
        folder = self.out / f"tower-{hashlib.sha256(self._rests_on(clip).encode()).hexdigest()[:12]}"
        folder.mkdir(exist_ok=True)
        return folder

    def _source(self, shape: BatchShape) -> BatchSource:
        b = self.banks
        return BatchSource(self._fit, b.fit, b.clean, b.captioned, b.captioned_pixels, shape, seed=self.seed)

    @torch.no_grad()
    def _zero_shot(self, clip: nn.Module, tokenizer: Tokenizer, preprocess: Preprocess) -> dict[str, float]:
        visual: nn.Module = clip.visual  # type: ignore[assignment]
        rated = tower_features(visual, self.banks.validation, preprocess.mean, preprocess.std)
        pair = encode_texts(clip, tokenizer, ANTONYMS[0]).cpu()
        return self.validation.by_subset(antonym_logit(F.normalize(rated, dim=-1), pair, 1.0).numpy())

    def _log(self, stage: str) -> Callable[[dict[str, float]], None]:
        path = self.out / f"{stage}.jsonl"

        def write(line: dict[str, float]) -> None:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + "\n")
            self.report(f"{stage}: " + ", ".join(f"{k} {v:.4g}" for k, v in line.items()))

        return write
