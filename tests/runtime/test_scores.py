from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from declip_runtime.errors import ImageDecodeError, UsageError
from declip_runtime.scorer_manifest import RESERVED_NAMES
from declip_runtime.scores import Score, Scores

NAMES = ("quality", "sharpness")
NAN = (float("nan"), float("nan"))
BROKEN = ImageDecodeError("'b.jpg' is not an image. Copy it again.")


@pytest.fixture
def scores() -> Scores:
    vector = np.array([0.6, 0.8], np.float32)
    return Scores(
        NAMES,
        [
            Score(0, "a.jpg", NAMES, (0.75, 0.5), None, vector),
            Score(1, "b.jpg", NAMES, NAN, BROKEN, np.full(2, np.nan, np.float32)),
            Score(2, "c.jpg", NAMES, (0.25, 0.125), None, vector[::-1]),
        ],
    )


def test_a_score_by_name_and_by_attribute(scores: Scores) -> None:
    assert scores["quality"].dtype == np.float32
    np.testing.assert_array_equal(scores["quality"], np.array([0.75, np.nan, 0.25], np.float32))
    np.testing.assert_array_equal(scores.sharpness, scores["sharpness"])
    assert scores[0].quality == scores[0]["quality"] == 0.75
    assert scores[-1].image == "c.jpg"


def test_it_is_a_sequence_of_images(scores: Scores) -> None:
    assert len(scores) == 3
    assert [s.index for s in scores] == [0, 1, 2]
    assert scores.images == ("a.jpg", "b.jpg", "c.jpg")
    part = scores[1:]
    assert isinstance(part, Scores)
    assert part.images == ("b.jpg", "c.jpg")
    with pytest.raises(IndexError):
        scores[3]


def test_a_failed_image_has_its_reason_and_nothing_else_has_nan(scores: Scores) -> None:
    assert scores.errors == (None, BROKEN, None)
    assert np.isnan(scores["quality"]).tolist() == [False, True, False]
    assert np.isnan(scores.embeddings).any(axis=1).tolist() == [False, True, False]


def test_embeddings_are_there_when_they_were_asked_for(scores: Scores) -> None:
    assert scores.embeddings.shape == (3, 2)
    np.testing.assert_array_equal(scores[0].embedding, scores.embeddings[0])
    without = Scores(NAMES, [Score(0, "a.jpg", NAMES, (0.75, 0.5))])
    with pytest.raises(UsageError, match="embeddings=True"):
        _ = without.embeddings


@pytest.mark.parametrize("get", [lambda s: s["qualty"], lambda s: s[0]["qualty"]])
def test_an_unknown_score_is_named_with_the_known_ones(scores: Scores, get: object) -> None:
    with pytest.raises(UsageError, match=r"'qualty'.*quality, sharpness"):
        get(scores)  # type: ignore[operator]


@pytest.mark.parametrize("pick", [lambda s: s, lambda s: s[0]])
def test_an_unknown_attribute_is_an_attribute_error(scores: Scores, pick: object) -> None:
    owner = pick(scores)  # type: ignore[operator]
    assert not hasattr(owner, "qualty")
    with pytest.raises(AttributeError, match="quality, sharpness"):
        _ = owner.qualty


def test_dicts_are_json(scores: Scores) -> None:
    dicts = json.loads(json.dumps(scores.to_dicts(), allow_nan=False))
    assert dicts[0] == {"image": "a.jpg", "quality": 0.75, "sharpness": 0.5, "error": None}
    assert dicts[1]["quality"] is None
    assert dicts[1]["error"] == "ImageDecodeError: 'b.jpg' is not an image. Copy it again."


def test_copies_and_pickles_are_equal(scores: Scores) -> None:
    for other in (pickle.loads(pickle.dumps(scores)), copy.deepcopy(scores), copy.copy(scores)):
        np.testing.assert_array_equal(other["quality"], scores["quality"])
        assert str(other.errors[1]) == str(BROKEN)
        assert type(other.errors[1]) is ImageDecodeError
        assert other[0].quality == 0.75


def test_the_repr_shows_values_images_and_failures(scores: Scores) -> None:
    text = repr(scores)
    assert text.startswith("Scores of 3 images, 1 failed\n")
    assert "0.7500" in text
    assert "b.jpg  (ImageDecodeError)" in text
    assert repr(scores[0]) == "Score('a.jpg', quality=0.7500, sharpness=0.5000)"
    assert "is not an image" in repr(scores[1])
    many = Scores(NAMES, [scores[0]] * 25)
    assert repr(many).endswith("... 15 more")
    assert len(repr(many).splitlines()) == 13


def test_no_score_can_be_named_like_a_member() -> None:
    """Attribute access would give the member, and to_dicts() would lose the score."""
    members = {n for cls in (Score, Scores) for n in (*dir(cls), *cls.__annotations__) if not n.startswith("_")}
    assert members | {"image", "error"} <= RESERVED_NAMES


def test_without_pandas_the_message_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from declip_runtime.scores import Score, Scores\n"
        "from declip_runtime.errors import UsageError\n"
        "try: Scores(('q',), [Score(0, 'a', ('q',), (0.5,))]).to_pandas()\n"
        "except UsageError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'declip-sdk[pandas]'" in result.stdout


def test_a_name_cannot_act_on_the_terminal() -> None:
    names = ("a\x1b[31m.jpg", "b\n.jpg", "c\udcff.jpg", "d\u00e4\U0001f600.jpg")
    text = repr(Scores(("quality",), [Score(i, name, ("quality",), (0.5,)) for i, name in enumerate(names)]))
    assert len(text.splitlines()) == 6
    assert "\x1b" not in text
    assert text.encode()
    assert "d\u00e4\U0001f600.jpg" in text


def test_embeddings_of_no_images_keep_their_width() -> None:
    assert Scores(("quality",), [], embedding_dim=5).embeddings.shape == (0, 5)
    one = Score(0, "a", ("quality",), (0.5,), _embedding=np.zeros(5, np.float32))
    assert Scores(("quality",), [one], embedding_dim=5)[1:].embeddings.shape == (0, 5)
