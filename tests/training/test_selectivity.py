"""Ladders of attributes against independent measures, and the verdict on scores whose behaviour is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import color, data, metrics

from declip_runtime.errors import ImageError, TrainingError
from declip_runtime.scorer_manifest import ScoreKind
from declip_training.evaluation.attribute_ladders import ATTRIBUTE_LADDERS, ATTRIBUTES, from_oklab, to_oklab
from declip_training.evaluation.ladders import Pixels
from declip_training.evaluation.selectivity import MINIMUM, Attribute, measure

PHOTOS = [data.astronaut()[60:220, 130:290], data.chelsea()[60:220, 100:260], data.coffee()[100:260, 200:360]]
KINDS: Mapping[str, ScoreKind] = {
    "sharpness": "quality",
    "noise": "quality",
    "brightness": "degree",
    "contrast": "degree",
    "colorfulness": "degree",
    "compression": "quality",
}
KINDS_OF: tuple[ScoreKind, ...] = ("quality", "degree")
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


def _lightness(pixels: Pixels) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return color.rgb2lab(pixels)[..., 0]  # type: ignore[no-any-return]


def _edges(pixels: Pixels) -> float:
    return float(ndimage.laplace(color.rgb2gray(pixels)).var())


def _colorfulness(pixels: Pixels) -> float:
    """D. Hasler, S. Suesstrunk: Measuring colourfulness in natural images, 2003."""
    red, green, blue = np.moveaxis(pixels.astype(float), 2, 0)
    first, second = red - green, (red + green) / 2 - blue
    return float(np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean()))


def _graininess(pixels: Pixels) -> float:
    """J. Immerkaer: Fast noise variance estimation, 1996."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    return float(np.abs(ndimage.convolve(color.rgb2gray(pixels), kernel)).mean())


MEASURES: Mapping[str, Callable[[Pixels], float]] = {
    "sharpness": _edges,
    "noise": _graininess,
    "brightness": lambda pixels: float(_lightness(pixels).mean()),
    "contrast": lambda pixels: float(_lightness(pixels).std()),
    "colorfulness": _colorfulness,
}


@pytest.mark.parametrize("photo", range(len(PHOTOS)))
@pytest.mark.parametrize("name", ATTRIBUTE_LADDERS)
def test_a_ladder_moves_what_it_is_named_for(name: str, photo: int) -> None:
    clean, ladder = PHOTOS[photo], ATTRIBUTE_LADDERS[name]
    rungs = [clean, *(rung(clean) for rung in ladder.rungs)]
    away = [metrics.mean_squared_error(clean, r) for r in rungs]
    assert len(rungs) == 6
    assert np.all(np.diff(away) > 0)
    if ladder.attribute in MEASURES:
        values = np.array([MEASURES[ladder.attribute](r) for r in rungs])
        assert np.all(np.diff(values) * (1 if ladder.more else -1) > 0)


@pytest.mark.parametrize("name", ["darker", "brighter", "flatter", "harder", "paler", "more vivid"])
def test_tone_and_colour_are_kept_apart(name: str) -> None:
    """Of lightness, its deviation and saturation the ladder's own changes most, as CIELAB sees it."""
    ladder = ATTRIBUTE_LADDERS[name]

    def measured(pixels: Pixels) -> Vector:
        lab = color.rgb2lab(pixels)
        lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
        return np.log([lightness.mean(), lightness.std(), chroma.mean() / lightness.mean()])

    for clean in PHOTOS:
        moved = np.abs(measured(ladder.rungs[2](clean)) - measured(clean))
        own = ("brightness", "contrast", "colorfulness").index(ladder.attribute)
        assert moved[own] > 0.2
        assert np.all(np.delete(moved, own) < 0.15 + 0.5 * moved[own])


def test_oklab_round_trips_and_knows_grey() -> None:
    for photo in PHOTOS:
        assert np.array_equal(from_oklab(to_oklab(photo)), photo)
    grey = to_oklab(np.array([[[0, 0, 0], [119, 119, 119], [255, 255, 255]]], np.uint8))[0]
    assert grey[:, 1:] == pytest.approx(0, abs=1e-4)
    assert grey[:, 0] == pytest.approx([0.0, 0.5693, 1.0], abs=1e-3)
    red = to_oklab(np.array([[[255, 0, 0]]], np.uint8))[0, 0]  # Ottosson's own table
    assert red == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


@pytest.mark.parametrize("shape", [(31, 45), (16, 17)])
@pytest.mark.parametrize("name", ATTRIBUTE_LADDERS)
def test_shape_type_and_result_are_kept(name: str, shape: tuple[int, int]) -> None:
    clean = PHOTOS[0][: shape[0], : shape[1]].copy()
    before = clean.copy()
    for rung in ATTRIBUTE_LADDERS[name].rungs:
        first, second = rung(clean), rung(clean)
        assert (first.shape, first.dtype) == (clean.shape, np.uint8)
        assert np.array_equal(first, second)
    assert np.array_equal(clean, before)


def test_black_and_white_survive_every_tone() -> None:
    clean = np.zeros((16, 16, 3), np.uint8)
    clean[:, 8:] = 255
    for name in ("darker", "brighter", "harder"):
        for rung in ATTRIBUTE_LADDERS[name].rungs:
            assert np.array_equal(rung(clean), clean), name


def test_directions_follow_the_kind() -> None:
    wanted = {(name, kind): ladder.direction(kind) for name, ladder in ATTRIBUTE_LADDERS.items() for kind in KINDS_OF}
    assert wanted[("blurred", "degree")] == wanted[("blurred", "quality")] == -1
    assert wanted[("sharpened", "degree")] == wanted[("sharpened", "quality")] == 1
    assert (wanted[("noisy", "degree")], wanted[("noisy", "quality")]) == (1, -1)
    assert (wanted[("compressed", "degree")], wanted[("compressed", "quality")]) == (1, -1)
    assert (wanted[("darker", "degree")], wanted[("brighter", "degree")]) == (-1, 1)
    assert (wanted[("flatter", "degree")], wanted[("harder", "degree")]) == (-1, 1)
    assert (wanted[("paler", "degree")], wanted[("more vivid", "degree")]) == (-1, 1)
    for name in ("darker", "brighter", "flatter", "harder", "paler", "more vivid"):
        assert wanted[(name, "quality")] == -1


class Oracle:
    """Knows every rung of every ladder: each attribute is a base for each photo, and ``steps`` more on each rung."""

    def __init__(self, steps: Callable[[str, str], float], photos: list[Pixels]) -> None:
        self._scores: dict[bytes, dict[str, float]] = {}
        for base, photo in enumerate(photos):
            self._scores[photo.tobytes()] = dict.fromkeys(ATTRIBUTES, float(base))
            for name, ladder in ATTRIBUTE_LADDERS.items():
                for number, rung in enumerate(ladder.rungs, 1):
                    self._scores.setdefault(
                        rung(photo).tobytes(), {a: base + number * steps(a, name) for a in ATTRIBUTES}
                    )

    def __call__(self, images: list[Pixels]) -> dict[str, Vector]:
        known = [self._scores[image.tobytes()] for image in images]
        return {attribute: np.array([scores[attribute] for scores in known]) for attribute in ATTRIBUTES}


@pytest.fixture(scope="module")
def small() -> list[Pixels]:
    return [photo[40:72, 40:72].copy() for photo in PHOTOS]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, small: list[Pixels]) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(small):
        Image.fromarray(photo).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def _own(attribute: str, ladder: str, kinds: Mapping[str, ScoreKind] = KINDS) -> float:
    judged = ATTRIBUTE_LADDERS[ladder]
    return float(judged.direction(kinds[attribute])) if judged.attribute == attribute else 0.0


def _by_name(attributes: tuple[Attribute, ...]) -> dict[str, Attribute]:
    return {attribute.name: attribute for attribute in attributes}


def test_an_oracle_is_validated(small: list[Pixels], paths: list[Path]) -> None:
    result = measure(Oracle(_own, small), KINDS, paths)
    assert [a.name for a in result.attributes] == list(ATTRIBUTES) == list(KINDS)
    assert result.absent == ()
    for attribute in result.attributes:
        assert attribute.validated
        assert set(attribute.ranks.values()) == {1.0}
        assert attribute.responses["noisy"].photos == len(paths)
        # five rungs of 1 each, in standard deviations of the bases 0, 1, 2
        assert list(attribute.moves.values()) == pytest.approx([5 / np.std([0, 1, 2])] * len(attribute.moves))


def test_both_kinds_can_be_validated(small: list[Pixels], paths: list[Path]) -> None:
    turned: dict[str, ScoreKind] = {a: "degree" if kind == "quality" else "quality" for a, kind in KINDS.items()}
    oracle = Oracle(lambda attribute, ladder: _own(attribute, ladder, turned), small)
    assert all(a.validated for a in measure(oracle, turned, paths).attributes)
    wrong = _by_name(measure(oracle, KINDS, paths).attributes)
    assert wrong["noise"].ranks == {"noisy": -1.0}
    assert not any(a.monotone for name, a in wrong.items() if name != "sharpness")


def test_an_inverted_score_has_the_wrong_sign(small: list[Pixels], paths: list[Path]) -> None:
    for attribute in measure(Oracle(lambda a, ladder: -_own(a, ladder), small), KINDS, paths).attributes:
        assert set(attribute.ranks.values()) == {-1.0}
        assert max(attribute.moves.values()) < 0
        assert not attribute.monotone
        assert not attribute.selective


def test_a_random_score_is_about_zero(paths: list[Path]) -> None:
    rng = np.random.default_rng(1)
    result = measure(lambda images: {"noise": rng.random(len(images))}, {"noise": "quality"}, paths * 8)
    assert abs(np.mean([response.rank for response in result.attributes[0].responses.values()])) < 0.15
    assert not result.attributes[0].validated


@pytest.mark.parametrize(
    ("attribute", "other", "step", "selective"),
    [
        ("noise", "compressed", -0.9, True),
        ("noise", "compressed", -1.1, False),
        ("noise", "blurred", 1.1, False),  # no own ladder goes up: either direction counts
        ("sharpness", "noisy", 0.5, False),  # further up than sharpened
        ("sharpness", "noisy", -1.9, True),  # up to blurred is far
        ("sharpness", "noisy", -2.1, False),
    ],
)
def test_a_rival_is_measured_by_the_own_ladder_that_goes_its_way(
    attribute: str, other: str, step: float, selective: bool, small: list[Pixels], paths: list[Path]
) -> None:
    def steps(name: str, ladder: str) -> float:
        own = {"blurred": -2.0, "sharpened": 0.4}.get(ladder, _own(name, ladder)) if name == "sharpness" else None
        return step if (name, ladder) == (attribute, other) else _own(name, ladder) if own is None else own

    judged = _by_name(measure(Oracle(steps, small), KINDS, paths).attributes)[attribute]
    assert judged.rival == other
    assert judged.monotone
    assert (judged.selective, judged.validated) == (selective, selective)


def test_one_lame_direction_is_not_monotone(small: list[Pixels], paths: list[Path]) -> None:
    steps = lambda a, ladder: 0.0 if ladder == "more vivid" else _own(a, ladder)  # noqa: E731
    judged = _by_name(measure(Oracle(steps, small), KINDS, paths).attributes)["colorfulness"]
    assert judged.ranks == {"paler": 1.0, "more vivid": 0.0}
    assert not judged.monotone
    assert not judged.validated


def test_a_score_without_spread_is_not_validated(paths: list[Path]) -> None:
    judged = measure(lambda images: {"noise": np.ones(len(images))}, {"noise": "quality"}, paths).attributes[0]
    assert judged.ranks == {"noisy": 0.0}
    assert np.isnan(judged.moves["noisy"])
    assert not judged.selective


def test_absent_attributes_are_named_and_other_scores_ignored(paths: list[Path]) -> None:
    def score(images: list[Pixels]) -> dict[str, Vector]:
        return {"quality": np.zeros(len(images)), "contrast": np.array([i.std() for i in images])}

    result = measure(score, {"quality": "quality", "contrast": "degree"}, paths)
    assert [a.name for a in result.attributes] == ["contrast"]
    assert set(result.absent) == set(ATTRIBUTES) - {"contrast"}
    assert measure(score, {"quality": "quality"}, paths).attributes == ()


def test_a_photo_without_colour_does_not_judge_colour(paths: list[Path], tmp_path: Path) -> None:
    Image.open(paths[0]).convert("L").save(tmp_path / "grey.png")
    score = lambda images: {"colorfulness": np.array([_colorfulness(i) for i in images])}  # noqa: E731
    judged = measure(score, {"colorfulness": "degree"}, [*paths, tmp_path / "grey.png"]).attributes[0]
    assert judged.responses["paler"].photos == len(paths)
    assert judged.responses["darker"].photos == len(paths) + 1
    assert judged.ranks["paler"] == 1.0
    with pytest.raises(TrainingError, match="can be made paler"):
        measure(score, {"colorfulness": "degree"}, [tmp_path / "grey.png"] * MINIMUM)


def test_too_few_and_unreadable_photos(paths: list[Path], tmp_path: Path) -> None:
    score = lambda images: {"noise": np.arange(float(len(images)))}  # noqa: E731
    with pytest.raises(TrainingError, match="2 photos cannot show selectivity"):
        measure(score, {"noise": "quality"}, paths[:2])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    with pytest.raises(ImageError, match=r"broken\.png"):
        measure(score, {"noise": "quality"}, [*paths, broken])
