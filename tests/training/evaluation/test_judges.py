"""The command that judges an engine by what training does not hold: its page, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from declip_runtime.errors import TrainingError
from declip_training.evaluation.attribute_ladders import ATTRIBUTE_LADDERS
from declip_training.evaluation.camera_faults import CAMERA_FAULTS
from declip_training.evaluation.camera_noise import CameraNoise, Share
from declip_training.evaluation.fresh import FRESH
from declip_training.evaluation.judges import Judgement, judge_engine, main, to_markdown
from declip_training.evaluation.ladders import LADDERS
from declip_training.evaluation.selectivity import Selectivity, measure
from declip_training.evaluation.unseen import UNSEEN
from declip_training.recipes.nano_data import Sources

from .engines import engine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the public clones: 41 and 200 pictures, of which 81 judge, and two pairs of camera noise."""
    root = tmp_path_factory.mktemp("data")
    source = data.astronaut()
    for number in range(241):
        folder, form = (
            ("codec-corpus/CID22/CID22-512/validation", "png")
            if number < 41
            else ("BSDS500/BSDS500/data/images/test", "jpg")
        )
        (root / folder).mkdir(parents=True, exist_ok=True)
        row, column = divmod(number, 20)
        cut = source[30 * row : 30 * row + 24, 20 * column : 20 * column + 27]
        Image.fromarray(cut).save(root / folder / f"{number:03}.{form}")
    crops = root / "polyu" / "CroppedImages"
    crops.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        stem = crops / f"Sony_4_200_{(1600, 3200, 6400)[number // 2]}_door_{number}"
        Image.new("RGB", (24, 24), (100, 110, 120)).save(f"{stem}_mean.JPG")
        Image.fromarray(rng.integers(60, 160, (24, 24, 3), dtype=np.uint8)).save(f"{stem}_real.JPG")
    return root


@pytest.fixture
def path(tmp_path: Path) -> Path:
    engine(tmp_path / "mini.engine", ["quality", "noise", "brightness"])
    return tmp_path / "mini.engine"


def _arguments(path: Path, root: Path, output: Path, *more: str) -> list[str]:
    return [str(path), "--data", str(root), "-o", str(output), *more]


def test_the_page_is_printed_and_written(path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = path.with_name("page.md")
    assert main(_arguments(path, root, output, "--limit", "3", "--precision", "fp32")) == 0
    page = output.read_text(encoding="utf-8")
    assert capsys.readouterr().out == page
    assert "A trial with 3 photos and 3 pairs: not a verdict." in page
    for name in (*LADDERS, *CAMERA_FAULTS, *UNSEEN, *FRESH):
        assert f"| {name} |" in page
    for name in ATTRIBUTE_LADDERS:
        assert f" {name} |" in page
    assert "| `brightness` (quality) |" in page
    assert "does not have: `sharpness`, `contrast`, `colorfulness`, `compression`." in page
    for made in ("| engine | mini |", "| precision | fp32 |", "| pairs | 3 of 3 scenes |", "| date | 20", "| commit |"):
        assert made in page
    assert sorted(p.name for p in path.parent.iterdir()) == ["mini.engine", "page.md"]


def test_trials_are_spread_over_photos_and_scenes(path: Path, root: Path) -> None:
    judgement = judge_engine(path, Sources(root), score="noise", precision="fp32", limit=4)
    assert (judgement.n_photos, judgement.camera.all.pairs, judgement.camera.all.scenes) == (4, 4, 3)
    assert judgement.limited
    assert judgement.score == "noise"
    assert judgement.selectivity.absent == ("sharpness", "contrast", "colorfulness", "compression")


def _judgement(
    ladders: float, faults: float, unseen: float, fresh: float, camera: float, selectivity: Selectivity
) -> Judgement:
    share = Share(camera, 100, 29)
    return Judgement(
        engine={"engine": "mini", "engine id": "abc", "backend": "fake", "precision": "fp32"},
        score="quality",
        n_photos=81,
        limited=False,
        ladders={**dict.fromkeys(LADDERS, ladders), "mean": ladders},
        camera_faults={**dict.fromkeys(CAMERA_FAULTS, faults), "mean": faults},
        unseen={**dict.fromkeys(UNSEEN, unseen), "mean": unseen},
        fresh={**dict.fromkeys(FRESH, fresh), "mean": fresh},
        camera=CameraNoise(share, (camera, camera), {"Sony": share}, {6400: share}),
        selectivity=selectivity,
    )


@pytest.fixture(scope="module")
def brightness(root: Path) -> Selectivity:
    photos = Sources(root).judging[:6]
    return measure(lambda im: {"brightness": np.array([i.mean() for i in im])}, {"brightness": "degree"}, photos)


def test_verdicts_stand_at_the_bars(brightness: Selectivity) -> None:
    def verdicts(page: str) -> list[str]:
        cells = [line.split("|")[-2].strip() for line in page.splitlines() if line.startswith("|")]
        return [cell for cell in cells if cell in ("passed", "**failed**", "absent")]

    none = Selectivity((), ("contrast",))
    at_bars = (0.97, 0.97, 0.97, 0.97, 0.9)
    assert verdicts(to_markdown(_judgement(*at_bars, none)))[:6] == ["passed"] * 5 + ["absent"]
    for missed, below in enumerate((0.969, 0.969, 0.969, 0.969, 0.89)):
        results = [*at_bars[:missed], below, *at_bars[missed + 1 :]]
        expected = ["**failed**" if place == missed else "passed" for place in range(5)]
        assert verdicts(to_markdown(_judgement(*results, none)))[:5] == expected

    page = to_markdown(_judgement(1.0, 1.0, 1.0, 1.0, 1.0, brightness))
    assert "trial" not in page
    assert "| `brightness` (degree) | 1.0000; darker " in page
    assert verdicts(page)[5] == "passed"
    assert "(down)" in page
    failing = replace(brightness.attributes[0], ranks={"darker": 1.0, "brighter": 0.94})
    assert verdicts(to_markdown(_judgement(1.0, 1.0, 1.0, 1.0, 1.0, Selectivity((failing,), ()))))[5] == "**failed**"


def test_a_number_just_below_a_bar_is_not_shown_as_the_bar() -> None:
    page = to_markdown(_judgement(0.9699, 0.97, 0.97, 0.97, 0.8999, Selectivity((), ())))
    assert "| 0.9699 | 0.97 | **failed** |" in page
    assert "| 0.8999 | 0.90 | **failed** |" in page


def test_what_cannot_work_is_one_line(path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = path.with_name("page.md")
    output.write_text("the page of yesterday")
    assert main(_arguments(path, path.parent, output)) == 2
    assert "imazen/codec-corpus" in capsys.readouterr().err
    assert main(_arguments(path, root, output, "--score", "beauty")) == 2
    assert "no score 'beauty'. It has quality, noise, brightness." in capsys.readouterr().err
    assert main(_arguments(path.with_name("absent.engine"), root, output)) == 2
    assert "absent.engine" in capsys.readouterr().err
    assert main(_arguments(path, root, path.parent / "nowhere" / "page.md")) == 2
    assert "nowhere to write to" in capsys.readouterr().err
    assert main(_arguments(path, root, path.parent)) == 2
    assert f"{path.parent} is a folder" in capsys.readouterr().err
    assert output.read_text() == "the page of yesterday"


def test_a_missing_polyu_names_its_repository(path: Path, root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "clones"
    elsewhere.mkdir()
    for name in ("codec-corpus", "BSDS500"):
        (elsewhere / name).symlink_to(root / name)
    with pytest.raises(TrainingError, match=r"polyu/CroppedImages cannot be read .*csjunxu/PolyU"):
        judge_engine(path, Sources(elsewhere))


@pytest.mark.parametrize("limit", ["2", "-1", "many"])
def test_a_limit_that_shows_nothing_is_refused(limit: str, path: Path, root: Path) -> None:
    with pytest.raises(SystemExit):
        main(_arguments(path, root, path.with_name("page.md"), "--limit", limit))
