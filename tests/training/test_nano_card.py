"""The bundled engine's model card: numbers of the run, and every score that it offers."""

from __future__ import annotations

from declip_runtime.scorer_manifest import ScoreSpec
from declip_training.evaluation.camera_noise import CameraNoise, Share
from declip_training.evaluation.judges import Judgement
from declip_training.evaluation.selectivity import Selectivity
from declip_training.recipes.nano_card import LADDERS, model_card


def test_the_card_states_the_numbers_of_the_run() -> None:
    judged = {"ss01": "0.8123", "ss02": "0.4", "ss03": "0.5", "mean": "0.6", "pooled": "0.7", "n": "2000"}
    judged |= {"n_unique": "1826", "n_ladder_photos": "81"} | {f"ladder_{name}": "0.9012" for name in LADDERS}
    spec = ScoreSpec("quality", "quality", (("Good photo.", "Bad photo."),), "Technical quality")
    camera = CameraNoise(Share(0.1934, 100, 29), (0.1, 0.3), {}, {})
    judgement = Judgement(
        {},
        "quality",
        81,
        False,
        {},
        {"watercolour": 0.8765},
        {"striping": 0.4321, "mean": 0.5},
        {"scratches": 0.3456},
        camera,
        Selectivity((), ()),
    )
    card = model_card({"tower": {"mean": 0.6543}}, judged, judgement, [spec])
    assert "ss01 0.8123" in card  # as the ledger has it: rounded twice, 0.69348 would be 0.694
    assert "(1,826 photos)" in card
    assert "- tower: 0.654" in card
    assert "noise 0.901" in card
    assert "watercolour 0.876" in card
    assert "striping 0.432, mean 0.500." in card
    assert "scratches 0.346." in card
    assert "100 pairs of the mean of many shots and one of them): ranked right 0.19 of" in card
    assert "- `quality` (quality): Technical quality.\n" in card
    assert "{" not in card
