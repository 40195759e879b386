"""Ladders of lens and processing and of kinds never trained on: worse at each rung, repeatable, judged rightly."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from scipy import ndimage
from skimage import data, metrics

from declip_runtime.errors import ImageError, TrainingError
from declip_training.data.distortions import DISTORTIONS
from declip_training.evaluation.attribute_ladders import to_oklab
from declip_training.evaluation.camera_faults import CAMERA_FAULTS, chromatic_aberration, oversharpening
from declip_training.evaluation.fresh import (
    FRESH,
    corner_softness,
    dust,
    flare,
    overdone_clarity,
    reflection,
    seams,
)
from declip_training.evaluation.ladders import LADDERS, Pixels, climb, judge, to_linear
from declip_training.evaluation.unseen import (
    UNSEEN,
    colour_bleeding,
    colour_cast,
    combing,
    dead_pixels,
    dithering,
    drops,
    ghosting,
    halftone,
    light_leak,
    lost_blocks,
    pixelation,
    rolling_shutter,
    scratches,
    solarisation,
    vignetting,
    webp,
    wrong_mosaic,
)

HARDLY_MEASURED = {
    "scratches",
    "colour bleeding",
    "dithering",
    "colour cast",
    "vignetting",
    "dust",
}  # structural similarity is of light, and of the whole photo
ALL = {**UNSEEN, **FRESH, **CAMERA_FAULTS}
PHOTOS = {"astronaut": data.astronaut()[100:292, 100:292], "chelsea": data.chelsea()[60:237, 100:321]}


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("name", ALL)
def test_each_rung_is_further_from_the_photo(name: str, photo: str) -> None:
    clean = PHOTOS[photo]
    rungs = [clean, *(rung(clean) for rung in ALL[name])]
    squared = [metrics.mean_squared_error(clean, r) for r in rungs]
    similarity = [metrics.structural_similarity(clean, r, channel_axis=2) for r in rungs]
    assert len(rungs) == 6
    assert np.all(np.diff(squared) > 0)
    assert np.all(np.diff(similarity) < 0)
    assert similarity[1] > 0.8  # just visible
    assert similarity[-1] < (0.97 if name in HARDLY_MEASURED else 0.9)


@pytest.mark.parametrize("shape", [(61, 83), (128, 33), (17, 16)])
@pytest.mark.parametrize("name", ALL)
def test_shape_type_and_result_are_kept(name: str, shape: tuple[int, int]) -> None:
    clean = PHOTOS["astronaut"][: shape[0], : shape[1]].copy()
    before = clean.copy()
    for rung in ALL[name]:
        first, second = rung(clean), rung(clean)
        assert first.shape == (*shape, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, second)
    assert np.array_equal(clean, before)


def test_kinds_are_none_of_training() -> None:
    assert not {*UNSEEN, *FRESH} & {*DISTORTIONS, *LADDERS, *CAMERA_FAULTS}
    assert not set(UNSEEN) & set(FRESH)


def test_chromatic_aberration_parts_the_colours_only_towards_the_corners() -> None:
    grey = np.repeat(PHOTOS["astronaut"][..., :1], 3, axis=2)
    moved = chromatic_aberration(grey, 6.0).astype(float)
    assert np.array_equal(moved[..., 1], grey[..., 1])
    apart = np.abs(moved[..., 0] - moved[..., 2])
    assert apart[86:106, 86:106].mean() < 0.3 * apart.mean()


def test_chromatic_aberration_moves_by_pixels_at_the_corner() -> None:
    """A dot near the corner goes outwards in red and inwards in blue, by about the strength."""
    dot = np.zeros((201, 201, 3), np.uint8)
    dot[188:191, 188:191] = 255
    moved = chromatic_aberration(dot, 5.0)
    green, red, blue = (np.array(ndimage.center_of_mass(moved[..., c].astype(float))) for c in (1, 0, 2))
    assert np.hypot(*(red - green)) == pytest.approx(5.0 * 89 / 100.5, abs=0.3)
    assert np.hypot(*(blue - green)) == pytest.approx(5.0 * 89 / 100.5, abs=0.5)
    assert np.all(red > green)
    assert np.all(blue < green)


def test_oversharpening_makes_halos() -> None:
    edge = np.full((40, 40, 3), 80, np.uint8)
    edge[:, 20:] = 160
    sharp = oversharpening(edge, 2.0)
    assert sharp[20, 19, 0] < 80
    assert sharp[20, 20, 0] > 160
    assert sharp[20, 2, 0] == 80


def test_dead_pixels_stay_dead_at_a_higher_share() -> None:
    clean = np.full((200, 200, 3), 128, np.uint8)
    few, many = dead_pixels(clean, 0.01), dead_pixels(clean, 0.1)
    assert np.mean(few != 128) == pytest.approx(0.01, rel=0.1)
    assert np.mean(many != 128) == pytest.approx(0.1, rel=0.1)
    assert np.array_equal(many[few != 128], few[few != 128])


def test_a_ghost_is_a_second_picture() -> None:
    dot = np.zeros((60, 60, 3), np.uint8)
    dot[20, 20] = 200
    double = ghosting(dot, 0.25)
    assert double[20, 20, 0] == 150
    assert double[25, 32, 0] == 50
    assert np.count_nonzero(double[..., 0]) == 2


def test_pixelation_repeats_what_it_keeps() -> None:
    columns = np.broadcast_to(np.arange(8, dtype=np.uint8)[None, :, None], (4, 8, 3))
    assert pixelation(columns, 2.0)[0, :, 0].tolist() == [1, 1, 3, 3, 5, 5, 7, 7]


def test_lost_blocks_are_whole_and_stay_lost() -> None:
    clean = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, :, None], (160, 160, 3))
    few, many = (lost_blocks(clean, share)[..., 0] != clean[..., 0] for share in (0.05, 0.3))
    assert np.all(many[few])
    assert few.reshape(20, 8, 20, 8).any(axis=(1, 3)).sum() * 64 == few.sum()
    assert many.mean() == pytest.approx(0.3, abs=0.1)


def test_combing_moves_each_second_row() -> None:
    bar = np.zeros((6, 20, 3), np.uint8)
    bar[:, 5] = 255
    assert combing(bar, 3)[..., 0].argmax(axis=1).tolist() == [5, 8] * 3


def test_a_vignette_darkens_corners_and_a_leak_one_side() -> None:
    grey = np.full((41, 61, 3), 120, np.uint8)
    dark, warm = vignetting(grey, 0.5).astype(int), light_leak(grey, 0.5).astype(int)
    assert dark[20, 30].tolist() == [120] * 3
    assert dark[0, 0, 0] == dark[-1, -1, 0] == pytest.approx(255 * (0.5 * (120 / 255) ** 2.2) ** (1 / 2.2), abs=2)
    assert warm[20, 0].tolist() == pytest.approx([120] * 3, abs=2)
    assert warm[20, -1, 0] > warm[20, -1, 1] > warm[20, -1, 2] > 120


def test_a_rolling_shutter_bends_what_is_straight() -> None:
    bar = np.zeros((120, 40, 3), np.uint8)
    bar[:, 20] = 255
    place = rolling_shutter(bar, 6)[..., 0].argmax(axis=1)
    assert (place[0], place[5], place[15]) == (20, 14, 26)
    assert np.array_equal(place[:100], place[20:])


def test_solarisation_turns_light_values_over() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    assert solarisation(ramp, 1.0)[0, :, 0].tolist() == [*range(128), *range(127, -1, -1)]


def test_a_soft_corner_leaves_the_middle_sharp() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (101, 101, 3)).astype(np.uint8)
    soft = corner_softness(noise, 4.0).astype(float)
    assert soft[45:56, 45:56].std() > 0.8 * noise[45:56, 45:56].std()
    assert soft[:8, :8].std() < 0.3 * noise[:8, :8].std()


def test_dust_lies_where_it_lay_and_takes_light() -> None:
    grey = np.full((300, 300, 3), 200, np.uint8)
    few, many = dust(grey, 5), dust(grey, 40)
    assert (few <= grey).all()
    assert (many <= few).all()
    assert ndimage.label(few[..., 0] < 190)[1] in range(2, 6)  # 4.5 expected; some lie on each other


def test_a_reflection_is_the_mirrored_photo_and_keeps_the_light() -> None:
    photo = PHOTOS["astronaut"]
    half = reflection(photo, 0.5)
    assert to_linear(half).mean() == pytest.approx(to_linear(photo).mean(), abs=0.005)
    assert np.abs(half.astype(int) - half[:, ::-1]).mean() < 0.25 * np.abs(photo.astype(int) - photo[:, ::-1]).mean()


def test_seams_lie_between_four_frames() -> None:
    ramp = np.broadcast_to(np.arange(60, 180, dtype=np.uint8)[:, None, None], (120, 80, 3))
    steps = np.abs(np.diff(seams(ramp, 8)[60, :, 0].astype(int)))
    assert np.flatnonzero(steps).tolist() == [19, 39, 59]


def test_a_flare_adds_light_along_a_line() -> None:
    dark = np.full((81, 121, 3), 30, np.uint8)
    lit = flare(dark, 0.3)
    assert (lit >= dark).all()
    assert (lit[40, 60] > 60).all()
    assert lit[2, -3].tolist() == lit[-3, 2].tolist() == [30] * 3


def test_clarity_keeps_flat_parts_and_steepens_edges() -> None:
    edge = np.full((20, 200, 3), 100, np.uint8)
    edge[:, 100:] = 140
    clear = overdone_clarity(edge, 2.0)
    assert clear[10, 5].tolist() == [100] * 3
    assert clear[10, -5].tolist() == [140] * 3
    assert clear[10, 99, 0] < 80
    assert clear[10, 100, 0] > 160


def test_a_missing_codec_is_an_error_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(TrainingError, match=r"cannot write WEBP\. .*pip install"):
        webp(PHOTOS["chelsea"], 30)


@pytest.fixture(scope="module")
def photo_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for name, pixels in PHOTOS.items():
        Image.fromarray(pixels[:176, :176]).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def _distance(sign: float, images: list[Pixels]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    clean = images[0].astype(float)
    return np.array([sign * np.mean((image - clean) ** 2) for image in images])


def test_an_oracle_an_inverted_and_a_random_score(photo_paths: list[Path]) -> None:
    rng = np.random.default_rng(0)
    oracle = judge(partial(_distance, -1.0), photo_paths, ladders=UNSEEN)
    inverted = judge(partial(_distance, 1.0), photo_paths, ladders=UNSEEN)
    chance = judge(lambda images: rng.random(len(images)), photo_paths * 12, ladders={"striping": UNSEEN["striping"]})
    assert set(oracle) == {*UNSEEN, "mean"}
    assert set(oracle.values()) == {1.0}
    assert set(inverted.values()) == {-1.0}
    assert abs(chance["mean"]) < 0.25


def test_a_constant_score_notices_nothing(photo_paths: list[Path]) -> None:
    one = {"WebP": UNSEEN["WebP"]}
    assert judge(lambda images: np.ones(len(images)), photo_paths, ladders=one) == {"WebP": 0.0, "mean": 0.0}


def test_the_length_of_a_ladder_is_free(photo_paths: list[Path]) -> None:
    short = {"WebP": UNSEEN["WebP"][:2]}
    assert judge(partial(_distance, -1.0), photo_paths, ladders=short)["mean"] == 1.0
    assert climb(np.array([1.0, 3.0, 2.0])) == pytest.approx(0.5)


def test_an_unreadable_photo_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        judge(partial(_distance, -1.0), [broken], ladders=UNSEEN)


def test_a_print_has_dots_in_full_inks_and_the_same_mean() -> None:
    flat = np.full((120, 120, 3), 100, np.uint8)
    printed = halftone(flat, 1.0)
    assert set(np.unique(printed)) == {0, 255}
    assert 60 < printed.mean() < 140
    assert (printed[..., 0] != printed[..., 1]).mean() > 0.1  # the screens are turned


def test_drops_are_round_and_more_of_them_are_among_more() -> None:
    photo = PHOTOS["astronaut"]
    few, many = ((drops(photo, s) != photo).any(axis=2) for s in (6, 60))
    assert 0 < few.mean() < many.mean() < 0.5
    assert (many | ~few).mean() > 0.98  # a later drop may lie on an earlier one
    assert np.array_equal(drops(np.full((50, 60, 3), 9, np.uint8), 60), np.full((50, 60, 3), 9, np.uint8))


def test_a_wrong_mosaic_spoils_edges_and_leaves_flat_parts() -> None:
    edge = np.full((40, 41, 3), 50, np.uint8)
    edge[:, 20:] = 200
    developed = wrong_mosaic(edge, 1.0)
    assert np.array_equal(developed[:, :18], edge[:, :18])
    assert np.array_equal(developed[:, 24:], edge[:, 24:])
    across = edge.transpose(1, 0, 2)
    assert (np.ptp(wrong_mosaic(across, 1.0).astype(int), axis=2) > 100).any(), "false colours"


def test_kinds_of_film_tape_and_file_do_what_they_say() -> None:
    photo = PHOTOS["astronaut"]
    assert len(np.unique(dithering(photo, 18).reshape(-1, 3), axis=0)) <= 18
    lightness = to_oklab(photo)[..., 0]
    bled = colour_bleeding(photo, 6)
    shown = (bled > 0).all(axis=2) & (bled < 255).all(axis=2)  # what no screen can show is clipped
    assert np.abs(to_oklab(bled)[..., 0] - lightness)[shown].max() < 0.02
    cast = to_linear(colour_cast(photo, 0.5)).mean(axis=(0, 1)) / to_linear(photo).mean(axis=(0, 1))
    assert cast == pytest.approx([1.0, 0.75, 0.5], abs=0.01)
    touched = [(scratches(photo, s) != photo).any(axis=2) for s in (5, 60)]
    assert 0.001 < touched[0].mean() < touched[1].mean() < 0.2
    thin = ndimage.binary_opening(touched[1], np.ones((4, 4)))
    assert thin.mean() < 0.02
