"""Scores come from the cache where they are there, from the model where not, and nothing that was scored is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import TrainingError
from declip_runtime.scorer import Scorer
from declip_training.evaluation import score_cache
from declip_training.evaluation.datasets import DATASETS, Collection, collect
from declip_training.evaluation.scoring import EngineScores, Scored, Settings

from .engines import TINY, engine
from .miniatures import draw, koniq

FAKE = Settings(backend="fake")


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    koniq(tmp_path / "koniq")
    return collect(DATASETS["koniq"], tmp_path / "koniq", "all")


@contextmanager
def quiet(_total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


def score(
    collection: Collection, cache: Path | None, settings: Settings = FAKE, file: Path = TINY, **options: Any
) -> Scored:
    with EngineScores(EngineFile.open(file), settings, **options) as scores:
        return scores.score(collection, cache, quiet)


def test_scores_are_the_scorers_in_the_order_of_the_table(collection: Collection) -> None:
    found = score(collection, None)
    with Scorer(TINY, backend="fake") as scorer:
        expected = scorer.score([photo.path for photo in collection.photos])
        assert dict(found.identity) == scorer.identity
    assert found.names == expected.names == ("quality", "brightness", "sharpness")
    for place, name in enumerate(found.names):
        assert np.array_equal(found.values[:, place].astype(np.float32), expected[name])
    assert found.good.all()
    assert found.fresh == 5


def test_a_second_table_needs_no_model(collection: Collection, tmp_path: Path) -> None:
    first = score(collection, tmp_path / "cache")

    def no_model() -> Scorer:
        raise AssertionError("the model was loaded")

    second = score(collection, tmp_path / "cache", make_scorer=no_model)
    assert np.array_equal(first.values, second.values)
    assert dict(second.identity) == dict(first.identity)
    assert (first.fresh, second.fresh) == (5, 0)


@pytest.mark.parametrize("change", [{"views": 2}, {"decode": "exact"}, {"precision": "fp32"}, {"device": "cpu"}])
def test_other_settings_have_scores_of_their_own(
    change: dict[str, Any], collection: Collection, tmp_path: Path
) -> None:
    score(collection, tmp_path / "cache")
    assert score(collection, tmp_path / "cache", replace(FAKE, **change)).fresh == 5
    assert score(collection, tmp_path / "cache", replace(FAKE, **change)).fresh == 0
    assert score(collection, tmp_path / "cache").fresh == 0


def test_a_photo_of_another_size_is_another_at_the_same_time(collection: Collection, tmp_path: Path) -> None:
    score(collection, tmp_path / "cache")
    photo = collection.photos[0].path
    times = photo.stat().st_atime_ns, photo.stat().st_mtime_ns
    photo.write_bytes(photo.read_bytes() + b"more")
    os.utime(photo, ns=times)
    assert score(collection, tmp_path / "cache").fresh == 1


def test_another_engine_has_scores_of_its_own(collection: Collection, tmp_path: Path) -> None:
    score(collection, tmp_path / "cache")
    other = engine(tmp_path / "other.engine", ["quality"])
    found = score(collection, tmp_path / "cache", file=other.path)
    assert (found.fresh, found.names) == (5, ("quality",))
    assert score(collection, tmp_path / "cache").fresh == 0


def test_another_split_shares_what_it_has_in_common(collection: Collection, tmp_path: Path) -> None:
    test = collect(DATASETS["koniq"], tmp_path / "koniq")
    assert score(test, tmp_path / "cache").fresh == 3
    assert score(collection, tmp_path / "cache").fresh == 2


def test_a_photo_that_was_replaced_is_scored_again(collection: Collection, tmp_path: Path) -> None:
    first = score(collection, tmp_path / "cache")
    draw(collection.photos[2].path, 20)
    os.utime(collection.photos[2].path, ns=(1, 1))
    second = score(collection, tmp_path / "cache")
    assert second.fresh == 1
    changed = (first.values != second.values).any(axis=1)
    assert changed.tolist() == [False, False, True, False, False]


def test_failed_photos_are_named_and_tried_again(collection: Collection, tmp_path: Path) -> None:
    path = collection.photos[1].path
    whole = path.read_bytes()
    path.write_bytes(b"not an image")
    found = score(collection, tmp_path / "cache")
    assert list(found.errors) == [collection.photos[1].name]
    assert str(path) in found.errors[collection.photos[1].name]
    assert found.good.tolist() == [True, False, True, True, True]
    assert np.isnan(found.values[1]).all()
    assert score(collection, tmp_path / "cache").errors == found.errors
    path.write_bytes(whole)
    mended = score(collection, tmp_path / "cache")
    assert (mended.fresh, mended.errors) == (1, {})


def test_a_link_that_leads_nowhere_fails_alone(collection: Collection, tmp_path: Path) -> None:
    path = collection.photos[0].path
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    found = score(collect(DATASETS["koniq"], tmp_path / "koniq", "all"), tmp_path / "cache")
    assert list(found.errors) == ["1024x768/91.jpg"]
    assert found.good.sum() == 4


def test_a_killed_run_goes_on_with_what_is_done(collection: Collection, tmp_path: Path) -> None:
    whole = score(collection, tmp_path / "other")
    steps = 0

    @contextmanager
    def killed_after_two(_total: int) -> Iterator[Callable[[], None]]:
        def step() -> None:
            nonlocal steps
            steps += 1
            if steps == 2:
                raise KeyboardInterrupt

        yield step

    with pytest.raises(KeyboardInterrupt), EngineScores(EngineFile.open(TINY), FAKE) as scores:
        scores.score(collection, tmp_path / "cache", killed_after_two)
    found = score(collection, tmp_path / "cache")
    assert found.fresh == 3
    assert np.array_equal(found.values, whole.values)


def test_every_score_is_on_disk_before_the_next_photo(collection: Collection, tmp_path: Path) -> None:
    seen = []

    @contextmanager
    def looking(_total: int) -> Iterator[Callable[[], None]]:
        yield lambda: seen.append(sum(1 for _ in next((tmp_path / "cache").iterdir()).open()))

    with EngineScores(EngineFile.open(TINY), FAKE) as scores:
        scores.score(collection, tmp_path / "cache", looking)
    assert seen == [2, 3, 4, 5, 6]  # a line says what the scores were made with


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_a_line_that_was_cut_off_is_scored_again(cut: int, collection: Collection, tmp_path: Path) -> None:
    whole = score(collection, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    found = score(collection, tmp_path / "cache")
    assert found.fresh == 1
    assert np.array_equal(found.values, whole.values)
    assert file.read_bytes() == content


def test_a_file_that_is_only_begun_is_begun_again(collection: Collection, tmp_path: Path) -> None:
    score(collection, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    for kept in (0, 10):
        file.write_bytes(content[:kept])
        assert score(collection, tmp_path / "cache").fresh == 5
        assert file.read_bytes() == content


@pytest.mark.parametrize("damage", ["[1, 2]\n", "{}\n", "nonsense\n", '["a.jpg", 1, 2, [0.5]]\n'])
def test_damage_is_told_with_its_line(damage: str, collection: Collection, tmp_path: Path) -> None:
    score(collection, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:2], damage, *lines[2:]]))
    with pytest.raises(TrainingError, match=rf"line 3 of .*{file.name} is damaged"):
        score(collection, tmp_path / "cache")
    file.write_text("".join([damage, *lines]))
    with pytest.raises(TrainingError, match="line 1 of"):
        score(collection, tmp_path / "cache")


def test_scores_made_with_something_else_stay_and_are_not_mixed_in(collection: Collection, tmp_path: Path) -> None:
    """As when "auto" takes another precision, because the folder came from another machine."""
    score(collection, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    lines = file.read_text().splitlines()
    header = json.loads(lines[0])
    header["identity"]["precision"] = "bf16"
    other = file.rename(file.with_name(file.name.replace(file.stem[-8:], "0" * 8)))
    other.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    before = other.read_bytes()
    photo = collection.photos[0].path
    whole, times = photo.read_bytes(), (photo.stat().st_atime_ns, photo.stat().st_mtime_ns)
    photo.write_bytes(b"another size: unreadable now")
    found = score(collection, tmp_path / "cache")
    assert (found.fresh, found.identity["precision"]) == (5, "fp32")
    assert found.good.tolist() == [False, True, True, True, True]
    assert len(file.read_text().splitlines()) == 5
    assert other.read_bytes() == before
    photo.write_bytes(whole)
    os.utime(photo, ns=times)
    found = score(collection, tmp_path / "cache")
    assert (found.fresh, found.identity["precision"]) == (0, "bf16"), "all of them are there"


def test_photos_of_one_name_in_another_folder_are_others(collection: Collection, tmp_path: Path) -> None:
    score(collection, tmp_path / "cache")
    shutil.copytree(tmp_path / "koniq", tmp_path / "copy")  # with the times of change
    copied = collect(DATASETS["koniq"], tmp_path / "copy", "all")
    assert score(copied, tmp_path / "cache").fresh == 5
    assert score(collection, tmp_path / "cache").fresh == 0


def test_a_file_that_another_process_writes_is_left_alone(collection: Collection, tmp_path: Path) -> None:
    """Two that write at once would write over each other's lines."""
    request = FAKE.request(EngineFile.open(TINY), collection.root)
    with Scorer(TINY, backend="fake") as scorer:
        path = score_cache.cache_path(tmp_path / "cache", collection.dataset.name, request, scorer.identity)
    program = (
        "import sys\nfrom pathlib import Path\nfrom declip_training.evaluation.score_cache import ScoreCache\n"
        "cache = ScoreCache(Path(sys.argv[1]))\ncache.start({'engine': 'x'}, ['quality'])\n"
        "cache.add(('a.jpg', 1, 2), [0.5])\nprint('writing', flush=True)\nsys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"writing\n"
        before = path.read_bytes()
        with pytest.raises(TrainingError, match="If another evaluation is writing it, wait for its end"):
            score(collection, tmp_path / "cache")
        assert path.read_bytes() == before
    finally:
        other.kill()
        other.communicate()
    assert score(collection, tmp_path / "cache").fresh == 5  # the turn of one that was killed is over


def test_what_another_process_wrote_in_the_meantime_stays(tmp_path: Path) -> None:
    path, identity = tmp_path / "scores.jsonl", {"engine": "x"}
    late = score_cache.ScoreCache(path)
    early = score_cache.ScoreCache(path)
    for cache, name in ((early, "a.jpg"), (late, "b.jpg")):
        assert cache.start(identity, ["quality"]) is False
        cache.add((name, 1, 2), [0.5])
        cache.close()
    for cache in (late, score_cache.ScoreCache(path)):
        assert [cache.get((name, 1, 2), ["quality"]) for name in ("a.jpg", "b.jpg")] == [(0.5,), (0.5,)]


def test_a_full_disk_is_one_error_that_keeps_what_was_scored(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = score_cache.ScoreCache.add
    calls = 0

    def full(self: score_cache.ScoreCache, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            self._stream = _Full(self._stream)  # type: ignore[assignment]
        add(self, *arguments)

    monkeypatch.setattr(score_cache.ScoreCache, "add", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*--cache; what was scored before is kept"):
        score(collection, tmp_path / "cache")
    monkeypatch.undo()
    assert score(collection, tmp_path / "cache").fresh == 3


class _Full:
    def __init__(self, stream: Any) -> None:
        self.close = stream.close

    def write(self, _: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_written_is_one_error(collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(TrainingError, match=r"cannot write .*cache"):
        score(collection, tmp_path / "cache")
