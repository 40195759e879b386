from __future__ import annotations

import gc
import io
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from declip_runtime.errors import ImageDecodeError, ImageNotFoundError, InvalidArrayError, UsageError
from declip_runtime.images import open_image
from declip_runtime.loader import Loader
from declip_runtime.manifest import Preprocess
from declip_runtime.preprocess import prepare


def number(source: int) -> np.ndarray:
    """Stands in for decoding: any source that is a number becomes that number."""
    return np.full((1, 1, 1, 3), source, np.uint8)


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("declip")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert our_threads() == []


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 1), (1, 8), (4, 3), (3, 50)])
def test_in_order_and_complete(threads, ahead):
    def uneven(source: int) -> np.ndarray:
        time.sleep(0.002 * (source % 3))
        return number(source)

    results = list(Loader(uneven, threads=threads, ahead=ahead)(range(40)))
    assert [r.index for r in results] == list(range(40))
    assert [r.source for r in results] == list(range(40))
    assert [int(r.pixels.flat[0]) for r in results] == list(range(40))


def test_nothing_from_nothing():
    assert list(Loader(number, threads=2, ahead=2)([])) == []


def test_photos(photos, broken_photo):
    spec = Preprocess(size=64)
    load = Loader(lambda source: prepare(open_image(source, minimum_side=128), spec), threads=2, ahead=4)
    results = list(load([*photos, broken_photo, photos[0]]))
    assert [r.source for r in results] == [*photos, broken_photo, photos[0]]
    assert isinstance(results[-2].error, ImageDecodeError)
    assert results[-2].pixels is None
    assert np.array_equal(results[0].pixels, results[-1].pixels)
    assert all(r.error is None and r.pixels.shape == (1, 64, 64, 3) for r in results[:-2])


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_an_endless_iterable_is_not_read_ahead_of_its_bound(ahead):
    taken = 0

    def endless():
        nonlocal taken
        for taken in itertools.count(1):
            yield taken % 200

    with_pause = Loader(number, threads=2, ahead=ahead)(endless())
    for delivered in range(1, 10):
        next(with_pause)
        time.sleep(0.01)
        assert taken <= delivered + ahead
    with_pause.close()


def test_work_overlaps():
    together = threading.Barrier(2, timeout=10)

    def meet(source: int) -> np.ndarray:
        together.wait()
        return number(source)

    assert len(list(Loader(meet, threads=2, ahead=2)(range(6)))) == 6


def test_results_do_not_wait_for_a_source_that_waits():
    asked, answers = threading.Event(), []

    def patient():
        yield 1
        assert asked.wait(10), "the second source was taken before the first result came out"
        yield 2

    for result in Loader(number, threads=2, ahead=16)(patient()):
        answers.append(result.index)
        asked.set()
    assert answers == [0, 1]


def test_bad_images_are_recorded_and_hold_no_memory():
    class Content:
        """What a frame might keep alive."""

    contents: list[weakref.ref[Content]] = []

    def fail(source: int) -> np.ndarray:
        content = Content()
        contents.append(weakref.ref(content))
        try:
            raise OSError("vendor")
        except OSError as error:
            raise ImageNotFoundError(f"{source} is gone. Look elsewhere.") from error

    results = list(Loader(fail, threads=2, ahead=4)(range(8)))
    assert [str(r.error) for r in results] == [f"{i} is gone. Look elsewhere." for i in range(8)]
    assert all(isinstance(r.error.__cause__, OSError) for r in results)
    gc.collect()
    assert [content() for content in contents] == [None] * 8


def test_a_source_of_a_wrong_type_is_recorded_as_a_bad_image_is(photos):
    load = Loader(lambda source: prepare(open_image(source), Preprocess(size=64)), threads=2, ahead=4)
    results = list(load([photos[0], 42, io.StringIO("text"), np.zeros((4, 4), np.uint8), photos[0]]))
    assert [type(r.error) for r in results] == [type(None), UsageError, UsageError, InvalidArrayError, type(None)]
    assert all(r.error is None or r.error.__traceback__ is None for r in results)


@pytest.mark.parametrize("slow", ["source", "picture"])
def test_with_patience_it_says_when_the_next_takes_long(slow):
    release = threading.Event()

    def source():
        yield 1
        if slow == "source":
            assert release.wait(10)
        yield 2

    def prepare(value):
        if slow == "picture" and value == 2:
            assert release.wait(10)
        return number(value)

    load = Loader(prepare, threads=2, ahead=4)(source(), patience=0.02)
    first = next(r for r in load if r is not None)
    assert first.index == 0
    assert next(load) is None
    release.set()
    assert next(load).index == 1
    assert [r for r in load if r is not None] == []


def test_our_own_mistakes_are_raised_in_their_turn():
    def mistaken(source: int) -> np.ndarray:
        if source == 5:
            raise ZeroDivisionError("a bug")
        return number(source)

    load = Loader(mistaken, threads=2, ahead=4)(range(100))
    assert [next(load).index for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(load)


def test_an_error_of_the_iterable_comes_after_the_results_before_it():
    def failing():
        yield from range(7)
        raise ConnectionError("the camera is gone")

    load = Loader(number, threads=2, ahead=4)(failing())
    assert [next(load).index for _ in range(7)] == list(range(7))
    with pytest.raises(ConnectionError, match="the camera is gone"):
        next(load)


def test_what_is_not_iterable():
    with pytest.raises(TypeError):
        list(Loader(number, threads=1, ahead=1)(3))


def test_the_consumer_may_stop_early():
    done = []

    def slow(source: int) -> np.ndarray:
        time.sleep(0.01)
        done.append(source)
        return number(source % 200)

    for result in Loader(slow, threads=2, ahead=100)(itertools.count()):
        if result.index == 2:
            break
    del result
    gc.collect()
    assert our_threads() == []
    assert len(done) < 20  # what was queued was dropped


def test_an_exception_in_the_consumer_leaves_no_thread():
    def consume() -> None:
        for result in Loader(number, threads=2, ahead=4)(itertools.repeat(7)):
            if result.index == 3:
                raise KeyError("the consumer's")

    with pytest.raises(KeyError):
        consume()


def test_an_iterable_that_waits_for_ever_does_not_hold_up_the_end():
    more = threading.Event()

    def waiting():
        yield 1
        more.wait()

    load = Loader(number, threads=1, ahead=4)(waiting())
    next(load)
    start = time.monotonic()
    load.close()
    assert time.monotonic() - start < 5
    more.set()  # now its thread can end; the fixture checks that it does
    for thread in threading.enumerate():
        if thread.name == "declip-reader":
            thread.join(5)


def test_two_at_once_from_several_threads():
    load = Loader(number, threads=2, ahead=3)
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda n: [int(r.pixels.flat[0]) for r in load(range(n))], (5, 50, 7, 20)))
    assert runs == [list(range(n)) for n in (5, 50, 7, 20)]


def test_wrong_use():
    for threads, ahead in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            Loader(number, threads=threads, ahead=ahead)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
def test_interrupt_ends_it_at_once():
    code = textwrap.dedent(
        """
        import itertools, signal, threading, time
        import numpy as np
        from declip_runtime.loader import Loader

        def slow(source):
            time.sleep(0.2)
            return np.zeros((1, 1, 1, 3), np.uint8)

        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            for _ in Loader(slow, threads=2, ahead=1000)(itertools.count()):
                pass
        except KeyboardInterrupt:
            print(threading.active_count())
        """
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1\n"
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_loader_works_in_a_forked_process():
    code = textwrap.dedent(
        """
        import os
        import numpy as np
        from declip_runtime.loader import Loader

        load = Loader(lambda source: np.full((1, 1, 1, 3), source, np.uint8), threads=2, ahead=4)
        assert len(list(load(range(5)))) == 5
        child = os.fork()
        if child == 0:
            os._exit(0 if len(list(load(range(5)))) == 5 else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60, check=True)
