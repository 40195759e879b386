"""The bundled model, from public data to checkpoints, resumable: `declip recipe nano` runs it and exports the engine.

Every stage leaves its result in the output folder and is skipped when that is there, so a run that was killed goes on
where it stopped. Choices (projector step, prompts) are made on a validation split of BIQ2021's Train; Test is not read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from declip_runtime.manifest import Preprocess, ScoreSpec, Validation
from declip_training.attributes import percentiles
from declip_training.calibration import fit_calibration
from declip_training.coop import CoopConfig, Loss, learn_context
from declip_training.data.batches import BatchShape, BatchSource
from declip_training.data.descriptions import ANTONYMS
from declip_training.data.distortions import DISTORTIONS, ladder
from declip_training.data.pixel_bank import load_square
from declip_training.evaluation.metrics import by_subset
from declip_training.features import FeatureBatch, build_feature_bank, tower_features
from declip_training.linear_head import fit_linear_head
from declip_training.losses import antonym_logit, ladder_loss, plcc_loss
from declip_training.model.checkpoint import ProjectorCheckpoint, load_projectors, save_projectors, tower_sha256
from declip_training.model.declip import DeCLIP
from declip_training.model.projector import Projector
from declip_training.model.prompts import PromptSet, ScorePrompts, encode_texts
from declip_training.model.tower import Tokenizer, load_clip
from declip_training.objective import split_images
from declip_training.pretrain import PretrainConfig, pretrain
from declip_training.projectors import ProjectorConfig, train_projectors
from declip_training.recipes.nano_attributes import LadderFeatures, ladder_features, learn_attributes
from declip_training.recipes.nano_data import LADDER_SIDES, SIDE, Banks, Sources, prepare

MODEL_CONFIG = Path(__file__).with_name("declip-nano.json")
# The second round starts at the first one's average: its rate restarts, at half the height.
ROUNDS = (PretrainConfig(), PretrainConfig(steps=2000, lr=7e-4, text_lr=2.5e-4, warmup=100, seed=8))
# What scaling down hides best, compression and blown highlights, is shown most, and noise, which enlarging changes. All
# ladders are distorted in the file's pixels: noise added to what the tower sees teaches it nothing of enlarged noise.
TOWER_SHAPE = BatchShape(
    rated=(14, 12, 24),
    ladders=12,
    captioned=8,
    ladder_odds={
        "jpeg": 3.0, "sensor noise": 2.5, "overexposure": 2.0, "display noise": 1.5, "camera grain": 2.0,
        "colour fringes": 1.5, "banding": 1.5, "halos": 1.5, "smearing": 1.5,
    },
    scaling=0.5,
    stored=frozenset(DISTORTIONS),
)  # fmt: skip
# The tower's embedding tells compression better than its cosine with two sentences does: the projector's to learn.
BANK_SHAPE = BatchShape(
    ladders=17,
    distorted_captions=0.7,
    ladder_odds={
        "jpeg": 6.0, "sensor noise": 4.0, "overexposure": 3.0, "display noise": 2.0, "gaussian blur": 2.0,
        "camera grain": 3.0, "colour fringes": 2.0, "banding": 2.0, "halos": 2.0, "smearing": 2.0,
    },
    scaling=0.4,
    stored=frozenset(DISTORTIONS),
)  # fmt: skip
BANK_BATCHES = 240
BANK_CROPS = (336,)
LADDER_PHOTOS = 20
ATTRIBUTE_PHOTOS = 40  # from each bank of clean photos
LADDER_SEVERITIES = (0.15, 0.35, 0.55, 0.75, 0.95)
WORTHWHILE = 0.002  # less than this and prompts that a person can read are worth more
READABLE = "readable words"
SEVERAL = "five readable pairs"
COOP = "CoOp context"

Report = Callable[[str], None]


@dataclass(frozen=True)
class NanoResult:
    """What the export needs, and the card: SRCC by subset on validation for every head that was compared.

    ``photos`` uint8 [16, S, S, 3] are prepared validation photos, for comparing the engine with torch.
    """

    declip: DeCLIP
    preprocess: Preprocess
    scores: tuple[ScoreSpec, ...]
    card: dict[str, Any]
    photos: npt.NDArray[np.uint8]

    def offering(self, names: Sequence[str]) -> NanoResult:
        """The same with the scores of these names only."""
        kept = [k for k, spec in enumerate(self.scores) if spec.name in names]
        declip = copy.deepcopy(self.declip)
        pairs = self.declip.averaging[:, kept].sum(dim=1) > 0
        declip.direction, declip.averaging = declip.direction[pairs], declip.averaging[pairs][:, kept]
        return replace(self, declip=declip, scores=tuple(self.scores[k] for k in kept))


@dataclass(frozen=True)
class ValidationFeatures:
    """Tower features float32: ``rated`` [N, D] of the validation photos, ``ladders`` [L, R, D], best rung first.

    Row i of ``ladders`` is of the kind ``i % len(DISTORTIONS)``.
    """

    rated: Tensor
    ladders: Tensor


class Nano:
    """The stages of the recipe over one output folder."""

    def __init__(self, data: Path, out: Path, rounds: Sequence[PretrainConfig], report: Report) -> None:
        self.sources, self.out, self.rounds, self.report = Sources(data), out, rounds, report
        self.seed = rounds[0].seed
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.seed)
        self.banks: Banks = prepare(self.sources, out / "cache")
        splits = self.banks.splits
        self.mos = np.array([p.mos for p in splits.validation])
        self.subsets = [p.subset for p in splits.validation]
        report(f"{len(splits.fit)} photos to fit, {len(splits.validation)} to choose by")

    def run(self, *, attributes: bool = False) -> NanoResult:
        """All stages in order; with ``attributes`` the engine gets scores for those that prove selective."""
        clip, tokenizer, preprocess = self.tower()
        scale = float(clip.logit_scale.detach().exp())  # type: ignore[operator]
        features = self.validation_features(clip, preprocess)
        bank = self.feature_bank(clip, preprocess)
        checkpoint = self.projectors(clip, tokenizer, bank, features, scale)
        prompts, card = self.prompts(clip, tokenizer, bank, features, checkpoint.perceptual, scale)
        if attributes:
            offered, card["attributes"] = self.attributes(clip, tokenizer, preprocess, checkpoint.perceptual, scale)
            prompts = replace(prompts, scores=(*prompts.scores, *offered))
        save_projectors(self.out / "declip-nano.safetensors", replace(checkpoint, prompts=prompts))
        declip = DeCLIP.from_clip(clip, tokenizer, prompts, checkpoint.perceptual, checkpoint.semantic)
        with torch.no_grad():
            raw = declip.scores(F.normalize(checkpoint.perceptual(features.rated), dim=-1)).numpy()
        split = "BIQ2021 Train, validation split"
        curves = [fit_calibration(raw[:, 0], self.mos, split)]
        curves += [fit_calibration(column, percentiles(column), f"rank in {split}") for column in raw.T[1:]]
        specs = tuple(replace(s, calibration=c) for s, c in zip(prompts.specs(), curves, strict=True))
        (self.out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        return NanoResult(declip, preprocess, specs, card, np.array(self.banks.validation[:16]))

    def tower(self) -> tuple[nn.Module, Tokenizer, Preprocess]:
        """Pre-trained tower and text tower (moving average), frozen."""
        clip, tokenizer, preprocess = load_clip(str(MODEL_CONFIG), "random")
        for number, config in enumerate(self.rounds, 1):
            folder = self.out / f"round-{number}"
            done = folder / "clip.safetensors"
            if not done.is_file():
                folder.mkdir(exist_ok=True)
                trained = pretrain(
                    clip,
                    tokenizer,
                    self._source(TOWER_SHAPE, config.seed),
                    config,
                    folder,
                    mean=preprocess.mean,
                    std=preprocess.std,
                    evaluate=lambda model: self._zero_shot(model, tokenizer, preprocess),
                )
                state = {k: v.contiguous() for k, v in trained.state_dict().items()}
                save_file(state, done, metadata={"config": json.dumps(asdict(config))})
            clip.load_state_dict(load_file(done))
        return clip.eval().requires_grad_(False), tokenizer, preprocess

    def validation_features(self, clip: nn.Module, preprocess: Preprocess) -> ValidationFeatures:
        """Whole validation photos, and ladders (training's distortions, graded evenly).

        Ladders start from the best of the validation photos and from Kodak's, which are sharper than these, from files
        larger and smaller than what the tower sees.
        """
        visual: nn.Module = clip.visual  # type: ignore[assignment]
        path = self.out / f"validation-{tower_sha256(visual)[:12]}.safetensors"
        if not path.is_file():
            best = [self.banks.splits.validation[i].path for i in np.argsort(-self.mos)[:LADDER_PHOTOS]]
            ladders = []
            for seed, photo in enumerate([*best, *self.sources.validation]):
                for side, kind in product(LADDER_SIDES, DISTORTIONS):
                    file = load_square(photo, side)
                    rungs = np.stack(ladder(file, SIDE, DISTORTIONS[kind], LADDER_SEVERITIES, seed, stored=True))
                    ladders.append(tower_features(visual, rungs, preprocess.mean, preprocess.std))
            rated = tower_features(visual, self.banks.validation, preprocess.mean, preprocess.std)
            save_file({"rated": rated, "ladders": torch.stack(ladders)}, path)
        return ValidationFeatures(**load_file(path))

    def feature_bank(self, clip: nn.Module, preprocess: Preprocess) -> list[FeatureBatch]:
        """Batches with I&2T pairs: captioned photos (T_s) distorted at random (T_p), rated photos, ladders."""
        plan = [(10**6 + i, BANK_CROPS[i % len(BANK_CROPS)]) for i in range(BANK_BATCHES)]
        visual: nn.Module = clip.visual  # type: ignore[assignment]
        return build_feature_bank(
            visual,
            self._source(BANK_SHAPE, self.seed),
            plan,
            self.out / "features.safetensors",
            mean=preprocess.mean,
            std=preprocess.std,
            key=f"{tower_sha256(visual)} {plan} {BANK_SHAPE.to_json()}",
            progress=lambda done, total: self.report(f"features {done}/{total}") if done % 40 == 0 else None,
        )

    def projectors(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        bank: list[FeatureBatch],
        features: ValidationFeatures,
        scale: float,
    ) -> ProjectorCheckpoint:
        """Projectors on I&2T-style pairs, chosen on validation with the paper's antonyms."""
        path = self.out / "projectors.safetensors"
        if not path.is_file():
            pair = encode_texts(clip, tokenizer, ANTONYMS[0])

            def evaluate(perceptual: nn.Module) -> dict[str, float]:
                return self._agreement(perceptual, features, pair)

            def encode(sentences: Sequence[str]) -> Tensor:
                # long captions are cut to the context, as in pre-training
                return F.normalize(clip.encode_text(tokenizer(list(sentences))).float(), dim=-1)  # type: ignore[operator]

            perceptual, semantic = train_projectors(
                bank, encode, scale, ProjectorConfig(), evaluate, self._log("projectors")
            )
            visual: nn.Module = clip.visual  # type: ignore[assignment]
            weights = f"round-{len(self.rounds)}/clip.safetensors"
            made = ProjectorCheckpoint("declip-nano", weights, tower_sha256(visual), perceptual, semantic)
            save_projectors(path, made)
        return load_projectors(path)

    def prompts(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        bank: list[FeatureBatch],
        features: ValidationFeatures,
        perceptual: Projector,
        scale: float,
    ) -> tuple[PromptSet, dict[str, Any]]:
        """The best on validation of readable words, several pairs and CoOp, and the card that compares them."""
        pair = encode_texts(clip, tokenizer, ANTONYMS[0])
        several = torch.stack([encode_texts(clip, tokenizer, p) for p in ANTONYMS])
        context = learn_context(
            clip, tokenizer, ANTONYMS[:1], CoopConfig(), context_loss(bank, perceptual, scale),
            lambda embedded: self._agreement(perceptual, features, embedded)["choice"], self._log("coop"),
        )  # fmt: skip
        learned = encode_texts(clip, tokenizer, ANTONYMS[0], context)
        candidates = {READABLE: pair, SEVERAL: several, COOP: learned}
        agreement = {name: self._agreement(perceptual, features, p, scale) for name, p in candidates.items()}
        linear = fit_linear_head(bank)(features.rated)
        card: dict[str, Any] = {
            "validation": {
                "tower without projectors, readable words": self._agreement(nn.Identity(), features, pair),
                **{f"DeCLIP, {name}": result for name, result in agreement.items()},
                "linear head on the frozen tower": {
                    k: round(v, 4) for k, v in by_subset(linear, self.mos, self.subsets).items()
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
                "BIQ2021 Train, validation split", round(agreement[chosen]["mean"], 4), len(self.mos),
                "mean of the three per-subset SRCCs; choices were made on these photos",
            ),
        )  # fmt: skip
        return PromptSet((ScorePrompts(spec, context if chosen == COOP else None),), scale), card

    def attributes(
        self,
        clip: nn.Module,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        perceptual: Projector,
        scale: float,
    ) -> tuple[tuple[ScorePrompts, ...], dict[str, Any]]:
        """Prompts of the attributes that Kodak's ladders prove selective, and how selective each one was."""
        fit, validation = self._attribute_ladders(clip, preprocess)
        seen, unseen = fit.through(perceptual), validation.through(perceptual)
        return learn_attributes(clip, tokenizer, seen, unseen, scale, lambda name: self._log(f"attribute-{name}"))

    def _attribute_ladders(self, clip: nn.Module, preprocess: Preprocess) -> tuple[LadderFeatures, LadderFeatures]:
        """Ladders to learn from (clean photos) and to choose by (Kodak's, by turns from larger and smaller files)."""
        visual: nn.Module = clip.visual  # type: ignore[assignment]
        tower = tower_sha256(visual)[:12]
        rng = np.random.default_rng(self.seed)
        picked = [b[i] for b in self.banks.clean for i in np.sort(rng.choice(len(b), ATTRIBUTE_PHOTOS, replace=False))]
        held = [
            load_square(photo, side) for photo, side in zip(self.sources.validation, cycle(LADDER_SIDES), strict=False)
        ]

        def build(windows: Sequence[npt.NDArray[np.uint8]], name: str) -> LadderFeatures:
            def encode(pixels: npt.NDArray[np.uint8]) -> Tensor:
                return tower_features(visual, pixels, preprocess.mean, preprocess.std)

            return ladder_features(windows, SIDE, encode, self.out / f"{name}-{tower}.safetensors", self.report)

        return build(picked, "attributes"), build(held, "attributes-validation")

    def _source(self, shape: BatchShape, seed: int) -> BatchSource:
        b = self.banks
        return BatchSource(b.splits.fit, b.fit, b.clean, b.captioned, b.captioned_pixels, shape, seed=seed)

    @torch.no_grad()
    def _zero_shot(self, clip: nn.Module, tokenizer: Tokenizer, preprocess: Preprocess) -> dict[str, float]:
        visual: nn.Module = clip.visual  # type: ignore[assignment]
        rated = tower_features(visual, self.banks.validation, preprocess.mean, preprocess.std)
        pair = encode_texts(clip, tokenizer, ANTONYMS[0])
        return by_subset(antonym_logit(F.normalize(rated, dim=-1), pair, 1.0).numpy(), self.mos, self.subsets)

    @torch.no_grad()
    def _agreement(
        self, perceptual: nn.Module, features: ValidationFeatures, pairs: Tensor, scale: float = 1.0
    ) -> dict[str, float]:
        """SRCC on validation by subset, Spearman of ladders (mean of all, and of the worst kind), and ``choice``.

        That is the mean of the subsets' SRCC and the worst kind of ladders: a score is trusted as far as that goes.

        ``pairs`` is [2, D] or [P, 2, D], averaged at ``scale``.
        """
        pairs = pairs.view(-1, 2, pairs.shape[-1])

        def score(x: Tensor) -> npt.NDArray[np.float32]:
            embedded = F.normalize(perceptual(x), dim=-1)
            averaged: npt.NDArray[np.float32] = (
                torch.sigmoid(scale * embedded @ (pairs[:, 0] - pairs[:, 1]).T).mean(-1).numpy()
            )
            return averaged

        result = by_subset(score(features.rated), self.mos, self.subsets)
        order = np.arange(features.ladders.shape[1])
        each = np.array([stats.spearmanr(order, -rungs).statistic for rungs in score(features.ladders)])
        result["ladder"] = float(each.mean())
        result["worst"] = float(each.reshape(-1, len(DISTORTIONS)).mean(axis=0).min())
        result["choice"] = (result["mean"] + result["worst"]) / 2
        return {k: round(v, 4) for k, v in result.items()}

    def _log(self, stage: str) -> Callable[[dict[str, float]], None]:
        path = self.out / f"{stage}.jsonl"

        def write(line: dict[str, float]) -> None:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + "\n")
            self.report(f"{stage}: " + ", ".join(f"{k} {v:.4g}" for k, v in line.items()))

        return write


def context_loss(
    bank: Sequence[FeatureBatch], perceptual: nn.Module, scale: float, *, merged: int = 4, seed: int = 13
) -> Loss:
    """What a learned context must satisfy: opinions, their order within each subset, and falling ladders.

    The first of the pairs decides, on ``merged`` batches of the bank, drawn each step.
    """
    with torch.no_grad():
        embedded = [F.normalize(perceptual(b.features), dim=-1) for b in bank]

    def loss(pairs: Tensor, step: int) -> Tensor:
        parts = []
        for chosen in np.random.default_rng((seed, step)).choice(len(bank), merged, replace=False):
            labels = bank[chosen].labels
            rated, ladders, _ = split_images(embedded[chosen], labels)
            mos, subset = torch.from_numpy(labels.mos), torch.from_numpy(labels.subset)
            score = torch.sigmoid(antonym_logit(rated, pairs[0], scale))
            within = [plcc_loss(score[subset == k], mos[subset == k]) for k in subset.unique()]
            rungs = antonym_logit(ladders, pairs[0], scale).view(labels.severities.shape)
            fall = ladder_loss(rungs, torch.from_numpy(labels.severities))
            parts.append(4 * F.mse_loss(score, mos) + torch.stack(within).mean() + plcc_loss(score, mos) + 3 * fall)
        return torch.stack(parts).mean()

    return loss
