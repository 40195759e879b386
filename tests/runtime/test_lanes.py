from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from declip_runtime.errors import BackendExecutionError, BackendWarning, DeviceMemoryError
from declip_runtime.lanes import Lanes, OnDemand, Outputs, ladder, rows
from declip_runtime.signature import BATCH, Arrays, Sizes


class FakeLane:
    """Doubles the first pixel of every image; writes down what it is asked, and that it is one thread's at a time."""

    def __init__(self, number: int, capacity: int, events: list[str]) -> None:
        self.number, self.capacity, self.events = number, capacity, events
        self.prepared: set[int] = set()
        self.started: Arrays | None = None
        self.closed = False

    def prepare(self, sizes: Sizes) -> None:
        assert sizes[BATCH] <= self.capacity
        assert sizes[BATCH] not in self.prepared, "prepared twice"
        self.prepared.add(sizes[BATCH])

    def start(self, inputs: Arrays, sizes: Sizes) -> None:
        assert self.started is None, "started twice"
        assert sizes[BATCH] in self.prepared
        assert rows(inputs) <= sizes[BATCH]
        self.started = inputs
        self.events.append(f"start {self.number}: {rows(inputs)} as {sizes[BATCH]}")

    def release(self, sizes: Sizes) -> None:
        self.prepared.remove(sizes[BATCH])

    def finish(self) -> Outputs:
        assert self.started is not None, "finished without a start"
        images, self.started = self.started["images"], None
        self.events.append(f"finish {self.number}")
        return {"scores": images.reshape(len(images), -1)[:, :1].astype(np.float32) * 2}

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Opener:
    """Makes lanes; more than ``memory`` images in all of them, and it runs out."""

    def __init__(self, memory: int = 10**9) -> None:
        self.memory, self.lanes, self.events = memory, [], []  # type: ignore[var-annotated]

    def __call__(self, capacity: int) -> FakeLane:
        if capacity + sum(lane.capacity for lane in self.lanes if not lane.closed) > self.memory:
            raise DeviceMemoryError("no memory.")
        self.lanes.append(FakeLane(len(self.lanes), capacity, self.events))
        return self.lanes[-1]


def images(count: int) -> Arrays:
    return {"images": np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)}


def doubled(count: int) -> np.ndarray:
    return images(count)["images"].reshape(count, -1)[:, :1].astype(np.float32) * 2


def test_a_ladder_has_its_limits_and_steps_of_at_most_a_half() -> None:
    assert ladder(64) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    assert ladder(1) == (1,)
    assert ladder(50) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50)
    assert ladder(16, 5) == (5, 6, 8, 12, 16)
    assert ladder(64, coarse=True) == (1, 4, 16, 64)
    assert ladder(50, 3, coarse=True) == (3, 4, 16, 50)
    for capacity in range(1, 200):
        steps = ladder(capacity)
        assert steps[-1] == capacity
        assert all(b <= 1.5 * a or (a, b) == (1, 2) for a, b in pairwise(steps))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 100])
def test_every_number_of_images_is_answered_in_order(count: int) -> None:
    lanes = Lanes(Opener(), 8)
    assert np.array_equal(lanes.run(images(count))["scores"], doubled(count))


def test_a_batch_is_padded_to_the_next_rung_and_no_further() -> None:
    opener = Opener()
    Lanes(opener, 64).run(images(5))
    assert opener.events == ["start 1: 5 as 6", "finish 1"]


def test_a_coarse_ladder_pads_further() -> None:
    opener = Opener()
    lanes = Lanes(opener, 64, count=1, coarse=True)
    assert np.array_equal(lanes.run(images(70))["scores"], doubled(70))
    assert opener.lanes[0].prepared == {1, 4, 16, 64}
    assert opener.events == ["start 0: 64 as 64", "finish 0", "start 0: 6 as 16", "finish 0"]


def test_fewer_images_than_a_plan_takes_are_padded_to_its_smallest_batch() -> None:
    opener = Opener()
    Lanes(opener, 64, smallest=8).run(images(2))
    assert opener.events[0] == "start 1: 2 as 8"


def test_the_next_piece_is_started_before_the_last_is_waited_for() -> None:
    opener = Opener()
    Lanes(opener, 4).run(images(14))
    assert opener.events == [
        "start 1: 4 as 4",
        "start 0: 4 as 4",
        "finish 1",
        "start 1: 4 as 4",
        "finish 0",
        "start 0: 2 as 2",
        "finish 1",
        "finish 0",
    ]


def test_too_little_memory_halves_the_batch_and_says_so() -> None:
    opener = Opener(memory=40)
    with pytest.warns(BackendWarning, match="batches of 16 instead of 64"):
        lanes = Lanes(opener, 64)
    assert lanes.capacity == 16
    assert [lane.capacity for lane in opener.lanes if not lane.closed] == [16, 16]
    assert np.array_equal(lanes.run(images(50))["scores"], doubled(50))


def test_memory_that_runs_out_while_a_lane_is_prepared_counts_too() -> None:
    class Greedy(FakeLane):
        def prepare(self, sizes: Sizes) -> None:
            if sizes[BATCH] > 8:
                raise DeviceMemoryError("no memory for scratch.")
            super().prepare(sizes)

    made: list[Greedy] = []

    def open_lane(capacity: int) -> Greedy:
        made.append(Greedy(len(made), capacity, []))
        return made[-1]

    with pytest.warns(BackendWarning):
        lanes = Lanes(open_lane, 32)
    assert lanes.capacity == 8
    assert sum(not lane.closed for lane in made) == 2


def test_where_not_even_one_image_fits_the_error_says_why_and_nothing_stays_open() -> None:
    opener = Opener(memory=0)
    with pytest.raises(DeviceMemoryError, match="no memory"):
        Lanes(opener, 64)
    assert all(lane.closed for lane in opener.lanes)


def test_in_the_end_one_lane_must_do() -> None:
    opener = Opener(memory=1)
    with pytest.warns(BackendWarning, match="batches of 1 instead of 64"):
        lanes = Lanes(opener, 64)
    assert np.array_equal(lanes.run(images(5))["scores"], doubled(5))


def test_many_threads_share_two_lanes() -> None:
    lanes = Lanes(Opener(), 4)
    with ThreadPoolExecutor(8) as pool:
        counts = [1 + n % 23 for n in range(200)]
        results = list(pool.map(lambda count: lanes.run(images(count))["scores"], counts))
    assert all(np.array_equal(r, doubled(count)) for r, count in zip(results, counts, strict=True))


def test_one_free_lane_is_enough_for_many_pieces() -> None:
    """Who has one lane must never wait for a second that somebody with one waits for too."""
    lanes = Lanes(Opener(), 2)
    at_once = threading.Barrier(2)

    def run() -> bool:
        at_once.wait()
        return all(np.array_equal(lanes.run(images(9))["scores"], doubled(9)) for _ in range(50))

    with ThreadPoolExecutor(2) as pool:
        assert all(f.result(timeout=30) for f in [pool.submit(run), pool.submit(run)])


def test_a_lane_that_fails_leaves_the_others_usable() -> None:
    opener = Opener()
    lanes = Lanes(opener, 4)
    broken, failing = opener.lanes[0], threading.Event()
    finish: Callable[[], Outputs] = broken.finish

    def fail() -> Outputs:
        result = finish()
        if failing.is_set():
            raise BackendExecutionError("CUDA failed.")
        return result

    broken.finish = fail
    failing.set()
    with pytest.raises(BackendExecutionError):
        lanes.run(images(14))
    failing.clear()
    assert all(lane.started is None for lane in opener.lanes), "somebody still works"
    assert np.array_equal(lanes.run(images(14))["scores"], doubled(14))


def test_a_lane_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    opener = Opener()
    lanes = Lanes(opener, 4)

    def fail() -> None:
        raise BackendExecutionError("CUDA failed.")

    opener.lanes[0].close = fail
    with pytest.raises(BackendExecutionError):
        lanes.close()
    assert opener.lanes[1].closed


def test_closing_closes_every_lane_once() -> None:
    opener = Opener()
    lanes = Lanes(opener, 4)
    lanes.close()
    lanes.close()
    assert all(lane.closed for lane in opener.lanes)


# --- sizes on demand


def test_sizes_are_made_ready_once_and_the_oldest_are_let_go() -> None:
    lane = FakeLane(0, 64, [])
    runner = OnDemand(lane, {BATCH: 1}, {BATCH: 1})
    for count in (1, 2, 3, 2, 4):
        assert np.array_equal(runner.run(images(count), {BATCH: count})["scores"], doubled(count))
    assert lane.prepared == {1, 2, 3, 4}
    runner.run(images(5), {BATCH: 5})
    assert lane.prepared == {2, 3, 4, 5}, "1 was asked for longest ago"
    runner.run(images(3), {BATCH: 3})
    runner.run(images(6), {BATCH: 6})
    assert lane.prepared == {3, 4, 5, 6}
    runner.close()
    assert lane.closed


def test_a_size_that_could_not_be_made_ready_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = FakeLane(0, 64, [])
    runner = OnDemand(lane, {BATCH: 1}, {BATCH: 1})
    with monkeypatch.context() as patch:

        def refuse(_: Sizes) -> None:
            raise DeviceMemoryError("no memory.")

        patch.setattr(lane, "prepare", refuse)
        with pytest.raises(DeviceMemoryError):
            runner.run(images(2), {BATCH: 2})
    assert np.array_equal(runner.run(images(2), {BATCH: 2})["scores"], doubled(2))


class LittleLane(FakeLane):
    """Memory for no more than ``room`` rows in all sizes that are ready together."""

    def __init__(self, room: int) -> None:
        super().__init__(0, 64, [])
        self.room = room

    def prepare(self, sizes: Sizes) -> None:
        if sum(self.prepared) + sizes[BATCH] > self.room:
            raise DeviceMemoryError("no memory.")
        super().prepare(sizes)


def test_sizes_that_wait_make_room_for_one_that_is_asked_for() -> None:
    lane = LittleLane(8)
    runner = OnDemand(lane, {BATCH: 2}, {BATCH: 1})
    for count in (1, 3, 7, 2):
        assert np.array_equal(runner.run(images(count), {BATCH: count})["scores"], doubled(count))
    assert lane.prepared == {2}, "7 left no room"
    with pytest.raises(DeviceMemoryError):
        runner.run(images(9), {BATCH: 9})
    assert np.array_equal(runner.run(images(8), {BATCH: 8})["scores"], doubled(8))


def test_the_typical_sizes_are_made_ready_at_once_or_else_the_smallest() -> None:
    lane = LittleLane(8)
    OnDemand(lane, {BATCH: 4}, {BATCH: 1})
    assert lane.prepared == {4}
    lane = LittleLane(3)
    OnDemand(lane, {BATCH: 4}, {BATCH: 1})
    assert lane.prepared == {1}
    lane = LittleLane(0)
    with pytest.raises(DeviceMemoryError):
        OnDemand(lane, {BATCH: 4}, {BATCH: 1})
    assert lane.closed


def test_threads_take_turns_on_demand() -> None:
    runner = OnDemand(FakeLane(0, 64, []), {BATCH: 1}, {BATCH: 1})
    with ThreadPoolExecutor(8) as pool:
        counts = [1, 2, 3, 4, 5, 6] * 20
        results = list(pool.map(lambda count: runner.run(images(count), {BATCH: count})["scores"], counts))
    assert all(np.array_equal(found, doubled(count)) for count, found in zip(counts, results, strict=True))
