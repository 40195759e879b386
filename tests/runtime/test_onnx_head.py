from __future__ import annotations

import random
from contextlib import suppress

import pytest

from declip_runtime.errors import EngineCorruptError
from declip_runtime.onnx_head import relocate, tensors

from .tiny_engine import FLOAT16, block, external, graph, number


def test_tensors_are_listed_with_their_place() -> None:
    first, second = tensors(graph())
    assert first == ("embed16", "float16", (768, 8), 0, 12288, "weights.bin")
    assert second == ("prompts16", "float16", (8, 3), 12288, 48, "weights.bin")


def test_relocation_moves_external_tensors_only() -> None:
    head = graph(semantic=True)
    moved = relocate(head, "/models/ä b.engine", 4096)
    assert [(t.location, t.offset) for t in tensors(moved)] == [
        ("/models/ä b.engine", 4096),
        ("/models/ä b.engine", 4096 + 12288),
    ]
    # and back again: nothing else was changed
    assert relocate(moved, "weights.bin", -4096) == head


def test_a_graph_without_external_tensors_stays_as_it_is() -> None:
    head = number(1, 8) + block(7, block(5, number(2, FLOAT16) + block(8, "inline") + block(9, b"\1\2")))
    assert relocate(head, "elsewhere", 7) == head
    assert tensors(head) == []


def test_fields_that_onnx_may_write_differently() -> None:
    """Dimensions packed, no offset (which means 0), and a checksum that must survive."""
    data = [("location", "weights.bin"), ("length", "4"), ("checksum", "abc")]
    entries = b"".join(block(13, block(1, key) + block(2, value)) for key, value in data)
    head = block(7, block(5, block(1, b"\x02\x01") + number(2, FLOAT16) + block(8, "w") + entries))
    moved = relocate(head, "x", 10)
    assert tensors(moved) == [("w", "float16", (2, 1), 10, 4, "x")]
    assert b"checksum" in moved
    assert b"abc" in moved


def test_large_offsets() -> None:
    head = block(7, block(5, external("w", (2,), 5 << 30)))
    assert tensors(relocate(head, "x", 3 << 30))[0].offset == 8 << 30


@pytest.mark.parametrize(
    "head",
    [
        b"\xff" * 20,
        block(7, b"")[:1],
        block(7, graph())[:-3],
        number(7, 3),
        b"\x3b\x00",
        b"\x00\x00",
        block(7, block(5, external("w", (2,), 0).replace(b"offset\x12\x010", b"offset\x12\x01x"))),
        block(7, block(5, external("w", (2,), 0).replace(b"weights.bin", b"weights.b\xff\xfe"))),
    ],
)
def test_malformed_bytes(head: bytes) -> None:
    with pytest.raises(EngineCorruptError, match="not readable ONNX"):
        relocate(head, "x", 1)
    with pytest.raises(EngineCorruptError, match="not readable ONNX"):
        tensors(head)


def test_random_damage_raises_nothing_else() -> None:
    rng, head = random.Random(0), graph()
    for _ in range(500):
        damaged = bytearray(head)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with suppress(EngineCorruptError):
            tensors(relocate(bytes(damaged), "x", 1))
