"""The scorer against the tiny engine: mostly on the fake backend, because its own work is not the model."""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import pickle
import queue
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip_runtime.backends import REGISTRY
from declip_runtime.backends.fake import FakeBackend
from declip_runtime.engine_file import EngineFile
from declip_runtime.errors import (
    BackendExecutionError,
    BackendUnavailableError,
    EngineCorruptError,
    EngineNotFoundError,
    ImageDecodeError,
    ImageNotFoundError,
    ImageTooLargeError,
    InvalidArrayError,
    ScorerStateError,
    UsageError,
)
from declip_runtime.scorer import Scorer

TINY = Path(__file__).parents[1] / "data" / "tiny.engine"


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(TINY, backend="fake", threads=2) as scorer:
        yield scorer


def picture(seed: int, width: int = 80, height: int = 60) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise // 2 + np.uint8(17 * seed % 128)  # the mean differs too


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three good files with a bad one in their midst."""
    paths = [tmp_path / f"{name}.png" for name in ("a", "broken", "b", "c")]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(seed)).save(path)
    paths[1].write_bytes(b"not a picture")
    return paths


# --- what can be scored


def test_every_kind_of_source_gives_the_same_score(scorer: Scorer, tmp_path: Path) -> None:
    array = picture(3)
    image = Image.fromarray(array)
    path = tmp_path / "photo.png"
    image.save(path)
    data = path.read_bytes()
    sources = [str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), image, array]
    scores = scorer.score(sources)
    assert len(scores) == len(sources)
    for name in scorer.names:
        assert len(set(scores[name].tolist())) == 1
    for source in (str(path), path, data, image, array):
        assert scorer.score(source)[0].values == scores[0].values


def test_one_image_gives_scores_of_length_one(scorer: Scorer) -> None:
    scores = scorer.score(picture(1))
    assert len(scores) == 1
    assert scores[scorer.names[0]].shape == (1,)


def test_an_array_of_rank_four_is_many_images(scorer: Scorer) -> None:
    stack = np.stack([picture(i) for i in range(5)])
    together = scorer.score(stack)
    assert len(together) == 5
    for i in range(5):
        assert together[i].values == scorer.score(stack[i])[0].values


def test_no_images_give_no_scores(scorer: Scorer) -> None:
    scores = scorer.score([])
    assert len(scores) == 0
    assert scores[scorer.names[0]].shape == (0,)
    assert list(scorer.stream(iter([]))) == []


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("lazy", [False, True])
def test_results_come_in_order_whatever_the_batches(scorer: Scorer, count: int, lazy: bool) -> None:
    pictures = [picture(i) for i in range(count)]
    alone = [scorer.score(p)[0].values for p in pictures]
    with Scorer(TINY, backend="fake", batch_size=8) as other:
        results = list(other.stream(iter(pictures) if lazy else pictures))
    assert [r.index for r in results] == list(range(count))
    assert [r.values for r in results] == alone


def test_opencv_arrays_are_read_as_bgr(scorer: Scorer) -> None:
    array = picture(5)
    with Scorer(TINY, backend="fake", channels="bgr") as bgr:
        rgb = scorer.score(array, embeddings=True).embeddings
        np.testing.assert_array_equal(bgr.score(array[..., ::-1], embeddings=True).embeddings, rgb)
        assert not np.array_equal(bgr.score(array, embeddings=True).embeddings, rgb)


def test_the_image_is_named_by_its_path_or_described(scorer: Scorer, photos: list[Path]) -> None:
    assert scorer.score(photos[0])[0].image == str(photos[0])
    assert "60, 80, 3" in scorer.score(picture(0))[0].image


# --- images that fail


def test_raise_is_the_default_of_score(scorer: Scorer, photos: list[Path]) -> None:
    with pytest.raises(ImageDecodeError, match=r"broken\.png"):
        scorer.score(photos)


def test_record_gives_nan_and_the_reason_and_the_others_their_scores(scorer: Scorer, photos: list[Path]) -> None:
    scores = scorer.score(photos, on_error="record", embeddings=True)
    assert [type(e) for e in scores.errors] == [type(None), ImageDecodeError, type(None), type(None)]
    assert np.isnan(scores[scorer.names[0]]).tolist() == [False, True, False, False]
    assert np.isnan(scores.embeddings).any(axis=1).tolist() == [False, True, False, False]
    assert scores[2].values == scorer.score(photos[2])[0].values


def test_an_archive_or_a_download_that_breaks_is_the_error_of_its_image(scorer: Scorer, photos: list[Path]) -> None:
    """What read() raises is the caller's: zipfile.BadZipFile, http.client.IncompleteRead and so on are no OSError."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(photos[0], "whole")
        archive.write(photos[0], "broken")
    content = buffer.getvalue()
    second = content.index(photos[0].read_bytes(), content.index(b"broken"))
    with zipfile.ZipFile(io.BytesIO(content[: second + 40] + b"!!!!" + content[second + 44 :])) as archive:
        members = [archive.open("whole"), archive.open("broken"), photos[0]]
        scores = scorer.score(members, on_error="record")
    assert [type(error) for error in scores.errors] == [type(None), ImageDecodeError, type(None)]
    assert isinstance(scores.errors[1].__cause__, zipfile.BadZipFile)


def test_pillows_own_limit_does_not_count(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scorer.score(picture(0, 400, 300))[0].values
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert scorer.score(picture(0, 400, 300), on_error="raise")[0].values == expected


def test_numpys_integers_are_integers() -> None:
    numbers = {"batch_size": 2, "views": 3, "threads": 1, "max_pixels": 10**6}
    with Scorer(TINY, backend="fake", **{k: np.int64(v) for k, v in numbers.items()}) as scorer:
        json.dumps(scorer.identity)
        assert (scorer.identity["views"], scorer.identity["decode"]) == (3, "exact"), "several views need every pixel"


def test_record_is_the_default_of_stream(scorer: Scorer, photos: list[Path]) -> None:
    assert [s.error is None for s in scorer.stream(photos)] == [True, False, True, True]


def test_stream_can_raise_after_what_came_before(scorer: Scorer, photos: list[Path]) -> None:
    results = scorer.stream(photos, on_error="raise")
    assert next(results).image == str(photos[0])
    with pytest.raises(ImageDecodeError):
        next(results)


def test_nothing_but_failures(scorer: Scorer, tmp_path: Path) -> None:
    scores = scorer.score([tmp_path / "no.jpg", tmp_path], on_error="record")
    assert [type(e) for e in scores.errors] == [ImageNotFoundError, ImageNotFoundError]


def test_a_folder_says_how_its_images_are_scored(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match=r"glob.*declip score|declip score.*glob"):
        scorer.score(tmp_path)


def test_a_kept_error_does_not_keep_the_picture(scorer: Scorer, photos: list[Path]) -> None:
    error = scorer.score(photos, on_error="record").errors[1]
    assert error is not None
    assert error.__traceback__ is None


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4), np.uint8), "H, W, 3"),
        (np.zeros((4, 4, 4), np.uint8), "alpha"),
        (np.zeros((2, 3, 4, 4), np.uint8), "H, W, 3"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), "dimensions"),
        (np.full((4, 4, 3), np.nan), "NaN"),
    ],
)
def test_a_wrong_array_is_named_with_what_is_wanted(scorer: Scorer, array: Any, wanted: str) -> None:
    with pytest.raises(InvalidArrayError, match=wanted):
        scorer.score(array)


@pytest.mark.parametrize("wrong", [7, object(), 1.5, io.StringIO("a photo, opened as text")])
def test_what_can_be_no_image_is_refused_or_recorded_like_another_failure(scorer: Scorer, wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"is no image|binary mode"):
        scorer.score(wrong)
    with pytest.raises(UsageError):
        list(scorer.stream([picture(0), wrong], on_error="raise"))
    images = [picture(0), wrong, picture(1)]
    for scores in (scorer.score(images, on_error="record"), list(scorer.stream(iter(images)))):
        assert [type(s.error) for s in scores] == [type(None), UsageError, type(None)]
        assert [np.isnan(s.values).any() for s in scores] == [False, True, False]
    assert [type(s.error) for s in scorer.stream(wrong)] == [UsageError]


def test_an_error_of_the_iterable_itself_comes_out(scorer: Scorer) -> None:
    def sources() -> Iterator[Any]:
        yield picture(0)
        raise LookupError("the catalogue is gone")

    results = scorer.stream(sources())
    assert next(results).error is None
    with pytest.raises(LookupError, match="catalogue"):
        next(results)
    with pytest.raises(LookupError, match="catalogue"):
        scorer.score(sources())


class Overflowing(FakeBackend):
    """A backend whose arithmetic is not up to the model."""

    def _compute_impl(self, inputs: Any, sizes: Any) -> Any:
        outputs = super()._compute_impl(inputs, sizes)
        outputs["scores"][-1, 0] = np.nan
        return outputs


def test_a_model_that_gives_nan_is_an_error_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "overflowing", f"{__name__}:Overflowing")
    with Scorer(TINY, backend="overflowing") as scorer, pytest.raises(BackendExecutionError, match="fp32"):
        scorer.score([picture(0), picture(1)], on_error="record")


# --- views and embeddings


def test_views_are_averaged_before_calibration() -> None:
    array = picture(2, 300, 200)
    with (
        Scorer(TINY, backend="openvino", precision="fp32", views=5) as scorer,
        Scorer(TINY, backend="openvino", precision="fp32") as single,
    ):
        manifest = scorer.manifest
        from declip_runtime.preprocess import prepare

        crops = prepare(Image.fromarray(array), manifest.preprocess, 5)
        scores = scorer.score(array, embeddings=True)
        assert crops.shape[0] == 5
        raw = scorer._ready().backend.run(crops)
        mean = raw.perceptual.mean(axis=0)
        np.testing.assert_allclose(scores.embeddings[0], mean / np.linalg.norm(mean), atol=1e-5)
        assert scores[0].values != single.score(array)[0].values
        for k, spec in enumerate(manifest.scores):
            if spec.calibration is None:
                assert scores[0].values[k] == pytest.approx(float(raw.scores[:, k].mean()), abs=1e-5)


def test_embeddings_are_normalised(scorer: Scorer) -> None:
    embeddings = scorer.score([picture(i) for i in range(3)], embeddings=True).embeddings
    assert embeddings.shape == (3, scorer.manifest.embedding_dim)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)


def test_small_batches_hold_all_views_of_an_image() -> None:
    pictures = [picture(i, 200, 150) for i in range(4)]
    with Scorer(TINY, backend="fake", views=5, batch_size=2) as small, Scorer(TINY, backend="fake", views=5) as large:
        assert [s.values for s in small.score(pictures)] == [s.values for s in large.score(pictures)]


def test_no_more_views_than_asked_for_go_through_the_model_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Watched(FakeBackend):
        def _compute_impl(self, inputs: Any, sizes: Any) -> Any:
            seen.append(sizes["batch"])
            return super()._compute_impl(inputs, sizes)

    monkeypatch.setattr(f"{__name__}.Watched", Watched, raising=False)
    monkeypatch.setitem(REGISTRY, "watched", f"{__name__}:Watched")
    with Scorer(TINY, backend="watched", views=5, batch_size=2) as scorer:
        scorer.score(picture(0, 200, 150))
    assert seen == [2, 2, 1]


# --- streaming


def test_what_was_read_is_answered_before_more_is_asked_for(scorer: Scorer) -> None:
    """A program that sends its next path only after the answer must not wait for ever."""
    requests: queue.Queue[Any] = queue.Queue()

    def arriving() -> Iterator[Any]:
        while (request := requests.get()) is not None:
            yield request

    results = scorer.stream(arriving())
    for i in range(5):
        requests.put(picture(i))
        answer: queue.Queue[Any] = queue.Queue()
        thread = threading.Thread(target=lambda answer=answer: answer.put(next(results)))
        thread.start()
        assert answer.get(timeout=10).index == i
        thread.join()
    for i in range(5, 8):
        requests.put(picture(i))
    assert [next(results).index for _ in range(3)] == [5, 6, 7]
    requests.put(None)
    assert list(results) == []


def test_the_model_works_on_while_scores_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would wait for whoever reads them. Of what is all there, one batch is begun ahead, and no more."""
    begun = threading.Semaphore(0)

    class Watched(FakeBackend):
        def _compute_impl(self, inputs: Any, sizes: Any) -> Any:
            begun.release()
            return super()._compute_impl(inputs, sizes)

    monkeypatch.setattr(f"{__name__}.Watched", Watched, raising=False)
    monkeypatch.setitem(REGISTRY, "watched", f"{__name__}:Watched")
    pictures = [picture(i) for i in range(7)]
    with Scorer(TINY, backend="watched", batch_size=2) as scorer:
        results = scorer.stream(pictures)
        assert next(results).index == 0
        assert begun.acquire(timeout=10)
        assert begun.acquire(timeout=10), "the second batch, of whose scores none was asked for"
        time.sleep(0.1)
        assert not begun.acquire(blocking=False), "the third batch"
        assert [r.index for r in results] == [1, 2, 3, 4, 5, 6]


def test_a_slow_image_does_not_hold_back_the_answers_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are read at once; the second is decoded only when the first was answered."""
    from declip_runtime import pipeline as module

    answered, original = threading.Event(), module.open_image

    def slow(source: Any, **options: Any) -> Any:
        if source[0, 0, 0] == 255:
            assert answered.wait(10)
        return original(source, **options)

    monkeypatch.setattr(module, "open_image", slow)
    quick, late = picture(1) // 2, np.full((60, 80, 3), 255, np.uint8)
    with Scorer(TINY, backend="fake", threads=2) as scorer:
        results = scorer.stream(iter([quick, late]))
        assert next(results).index == 0
        answered.set()
        assert [r.index for r in results] == [1]


def test_memory_that_runs_out_is_the_error_of_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from declip_runtime import pipeline as module

    def prepare(image: Any, *arguments: Any) -> Any:
        if image.width == 81:
            raise MemoryError
        return original(image, *arguments)

    original = module.prepare
    monkeypatch.setattr(module, "prepare", prepare)
    with Scorer(TINY, backend="fake") as scorer:
        scores = scorer.score([picture(1), picture(2, width=81), picture(3)], on_error="record")
    assert [type(e) for e in scores.errors] == [type(None), ImageTooLargeError, type(None)]


def test_a_stream_reads_only_a_bounded_distance_ahead() -> None:
    read = 0

    def endless() -> Iterator[Any]:
        nonlocal read
        while True:
            read += 1
            yield picture(read % 7)

    with Scorer(TINY, backend="fake", batch_size=4, threads=2) as scorer:
        results = scorer.stream(endless())
        for _ in range(20):
            next(results)
        time.sleep(0.2)
        assert read <= 20 + 4 + 2 * 4 + 2 + 2
        results.close()


def test_leaving_a_stream_ends_its_threads(scorer: Scorer) -> None:
    before = threading.active_count()
    results = scorer.stream(picture(i % 5) for i in range(1000))
    next(results)
    results.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_stream_keeps_no_picture(scorer: Scorer) -> None:
    """Scores of a generator of pictures must not hold the pictures."""

    class Tracked(np.ndarray[Any, Any]):
        alive = 0

        def __array_finalize__(self, other: Any) -> None:
            type(self).alive += 1

        def __del__(self) -> None:
            type(self).alive -= 1

    scores = scorer.score(picture(i % 5).view(Tracked) for i in range(50))
    gc.collect()
    assert len(scores) == 50
    assert Tracked.alive <= 2


def test_many_threads_get_the_scores_of_one(scorer: Scorer) -> None:
    pictures = [picture(i) for i in range(16)]
    alone = [scorer.score(p)[0].values for p in pictures]
    with ThreadPoolExecutor(8) as pool:
        assert [s[0].values for s in pool.map(scorer.score, pictures)] == alone
        parts = pool.map(lambda k: scorer.score(pictures[k : k + 4]), range(0, 16, 4))
        assert [s.values for part in parts for s in part] == alone


def test_many_callers_decode_no_more_at_a_time_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    from declip_runtime import pipeline as module

    decoding: list[int] = []
    most: list[int] = []

    def slow(*arguments: Any, **options: Any) -> Any:
        decoding.append(0)
        most.append(len(decoding))
        time.sleep(0.005)
        decoding.pop()
        return original(*arguments, **options)

    original = module.open_image
    monkeypatch.setattr(module, "open_image", slow)
    with Scorer(TINY, backend="fake", threads=2) as scorer, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: scorer.score([picture(k)] * 4), range(8)))
    assert max(most) == 2


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp4"}, "fp32"),
        ({"decode": "quick"}, "exact"),
        ({"channels": "gbr"}, "bgr"),
        ({"views": 0}, "views=0"),
        ({"views": 2.0}, "whole number"),
        ({"views": 101}, "1 to 100"),
        ({"threads": 0}, "threads=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"max_pixels": 0}, "max_pixels=0"),
        ({"engine": 3}, "engine must be a path"),
        ({"engine": ""}, "engine is empty"),
        ({"cache_dir": 3}, "cache_dir must be a path"),
    ],
)
def test_a_wrong_argument_fails_when_the_scorer_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(**{"engine": TINY, "backend": "fake", **arguments})


def test_a_missing_engine_and_an_unknown_backend_fail_when_the_scorer_is_made(tmp_path: Path) -> None:
    with pytest.raises(EngineNotFoundError):
        Scorer(tmp_path / "no.engine", backend="fake")
    with pytest.raises(BackendUnavailableError, match="openvino"):
        Scorer(TINY, backend="opnvino")


def test_the_engine_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO refuses to read weights from a file outside the working directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    engine = Path(shutil.copy(TINY, tmp_path / "there"))
    monkeypatch.chdir(tmp_path / "here")
    for path in (engine, f"../there/{engine.name}"):
        with Scorer(path, backend="openvino", cache_dir=tmp_path) as scorer:
            assert scorer.score(picture(0))[0].error is None


def test_on_error_is_checked_before_the_first_image(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match="record"):
        scorer.stream([], on_error="ignore")  # type: ignore[arg-type]


def test_max_pixels_is_obeyed() -> None:
    from declip_runtime.errors import ImageTooLargeError

    with Scorer(TINY, backend="fake", max_pixels=100) as scorer, pytest.raises(ImageTooLargeError):
        scorer.score(picture(0))


# --- life


def test_it_says_what_it_is(scorer: Scorer) -> None:
    text = repr(scorer)
    for part in (scorer.manifest.name, scorer.engine.id[:8], "fake", scorer.device, scorer.precision):
        assert part in text
    assert scorer.description in text
    assert scorer.description == scorer._ready().backend.description
    assert scorer.identity == {
        "engine": scorer.engine.id,
        "backend": "fake",
        "precision": scorer.precision,
        "decode": "fast",
        "views": 1,
        "preprocessing": 1,
    }


@pytest.mark.parametrize(
    ("backend", "distribution", "words"),
    [("openvino", "openvino", ("OpenVINO", "CPU")), ("onnxruntime", "onnxruntime", ("CPUExecutionProvider",))],
)
def test_it_names_library_version_and_provider(backend: str, distribution: str, words: tuple[str, ...]) -> None:
    pytest.importorskip(backend)
    with Scorer(TINY, backend=backend, precision="fp32") as scorer:
        for word in (*words, version(distribution), "fp32"):
            assert word in scorer.description
            assert word in repr(scorer)


def test_warming_up_changes_nothing(scorer: Scorer) -> None:
    before = scorer.score(picture(0))[0].values
    scorer.warmup()
    assert scorer.score(picture(0))[0].values == before


def test_a_closed_scorer_says_so() -> None:
    scorer = Scorer(TINY, backend="fake")
    scorer.close()
    scorer.close()
    assert "closed" in repr(scorer)
    for use in (lambda: scorer.score(picture(0)), lambda: scorer.names, scorer.warmup, lambda: pickle.dumps(scorer)):
        with pytest.raises(ScorerStateError, match="closed"):
            use()


class Slow(FakeBackend):
    """Takes its time, and fails where it was closed meanwhile."""

    begun = threading.Event()

    def _compute_impl(self, inputs: Any, sizes: Any) -> Any:
        self.begun.set()
        time.sleep(0.2)
        assert self.alive
        return super()._compute_impl(inputs, sizes)

    def _load_impl(self, *arguments: Any) -> None:
        time.sleep(0.2)
        self.alive = True
        super()._load_impl(*arguments)

    def _close_impl(self) -> None:
        self.alive = False


def test_closing_waits_for_what_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "slow", f"{__name__}:Slow")
    Slow.begun.clear()
    scorer = Scorer(TINY, backend="slow")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(scorer.score, picture(0))
        assert Slow.begun.wait(5)
        scorer.close()
        assert len(running.result()) == 1


def test_closing_a_copy_that_is_being_loaded_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "slow", f"{__name__}:Slow")
    copy = pickle.loads(pickle.dumps(Scorer(TINY, backend="slow")))
    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(copy.score, picture(0))
        time.sleep(0.1)  # it is loading now
        copy.close()
        with suppress(ScorerStateError):  # closed between its loading and its running
            using.result()
    assert not copy._loaded.backend.alive
    with pytest.raises(ScorerStateError, match="closed"):
        copy.score(picture(0))


def test_damaged_weights_are_noticed_before_they_score(tmp_path: Path) -> None:
    data = bytearray(TINY.read_bytes())
    member = EngineFile.open(TINY)._member("weights.bin")
    data[member.offset + member.size // 2] ^= 1
    (tmp_path / "damaged.engine").write_bytes(data)
    with pytest.raises(EngineCorruptError, match=r"weights\.bin"):
        Scorer(tmp_path / "damaged.engine", backend="fake")


def test_large_weights_are_checked_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("declip_runtime.scorer._ALWAYS_VERIFIED", 10)
    monkeypatch.setattr(EngineFile, "verify", lambda self: asked.append(self.path))
    Scorer(TINY, backend="fake").close()
    assert asked == []
    Scorer(TINY, backend="fake", verify=True).close()
    assert asked == [TINY]


def test_a_pickle_is_the_path_and_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(TINY.parent)
    with Scorer(TINY.name, backend="fake", views=2) as scorer:
        data = pickle.dumps(scorer)
        values = scorer.score(picture(1))[0].values
    assert len(data) < 1000
    monkeypatch.chdir(tmp_path)  # a relative path must not change its meaning
    with pickle.loads(data) as copy:
        assert copy.identity["views"] == 2
        assert copy.score(picture(1))[0].values == values


def _score_in_child(scorer: Scorer) -> tuple[float, ...]:
    return scorer.score(picture(1))[0].values


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_process_scores_alike(method: str) -> None:
    with Scorer(TINY, backend="openvino", precision="fp32") as scorer:
        expected = _score_in_child(scorer)
        with multiprocessing.get_context(method).Pool(1) as pool:
            values = pool.apply_async(_score_in_child, (scorer,)).get(timeout=60)
    assert values == pytest.approx(expected, abs=1e-6)


def _message_after_fork(use: Any) -> str:
    """What a forked child gets from ``use``."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            use()
            text = "no error"
        except ScorerStateError as error:
            text = str(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        return stream.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_use_after_fork_is_named_with_the_fix(scorer: Scorer) -> None:
    array = picture(0)
    copy = pickle.dumps(scorer)
    uses = [lambda: scorer.score(array), lambda: pickle.loads(copy).score(array), lambda: Scorer(TINY, backend="fake")]
    for use in uses:
        message = _message_after_fork(use)
        assert "forkserver" in message
        assert str(os.getpid()) in message
    assert _message_after_fork(scorer.close) == "no error"
    assert scorer.score(array)[0].error is None
