from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from declip_runtime.errors import TrainingError
from declip_training.i2t.inflection import inflections
from declip_training.i2t.vocabulary import Vocabulary, tokens, words


def of(*terms: str) -> Vocabulary:
    return Vocabulary(dict.fromkeys(terms, ""))


def found(vocabulary: Vocabulary, text: str) -> list[str]:
    return [match.term for match in vocabulary.matches(text)]


def test_the_longest_term_counts_and_its_words_do_not_count_again() -> None:
    vocabulary = of("depth", "field", "depth of field", "shallow depth of field", "shallow")
    assert found(vocabulary, "A shallow depth of field, a shallow depth.") == [
        "shallow depth of field",
        "shallow",
        "depth",
    ]
    assert found(vocabulary, "shallow depth of a field") == ["shallow", "depth", "field"]


def test_words_have_boundaries() -> None:
    vocabulary = of("art", "tone", "red")
    assert found(vocabulary, "The party started a stone; hundred, reddish") == []
    assert found(vocabulary, "ART, tone. (red)") == ["art", "tone", "red"]


@pytest.mark.parametrize(
    ("term", "forms"),
    [
        ("blur", "blurs blurred blurring"),
        ("saturate", "saturated saturating saturates"),
        ("hazy", "hazier haziest hazily"),
        ("sharp", "sharper sharpest sharply"),
        ("subtle", "subtly subtler"),
        ("dramatic", "dramatically"),
        ("blemish", "blemishes blemished"),
        ("harmony", "harmonies"),
        ("dim", "dimmed dimmer"),
        ("blend", "blending blended"),
        ("crop", "cropped cropping"),
        ("glow", "glowing glowed"),
        ("leading line", "leading lines"),
        ("out of focus", "out-of-focus"),
        ("colour", "color colors colored Colours"),
        ("grey", "gray grayer"),
        ("off centre", "off-center"),
        ("bird's eye view", "bird\u2019s-eye view"),
    ],
)
def test_simple_inflections_match(term: str, forms: str) -> None:
    vocabulary = of(term)
    several = [forms] if " " in term or "-" in forms else forms.split()
    for form in several:
        assert found(vocabulary, f"x {form} y") == [term], form


def test_american_spelling_of_centred() -> None:
    assert found(of("centred", "centred composition"), "Centered, a centered composition") == [
        "centred",
        "centred composition",
    ]


def test_inflections_of_one_another_count_once() -> None:
    vocabulary = of("highlight", "highlights", "stand out", "stands out", "standing out", "pop", "pops", "=orange")
    several = "A highlight, highlights; it stands out, stand out, standing out, pops, pop, pop. Orange, oranges."
    assert vocabulary.count(several) == 4
    assert vocabulary.count(several, repeats=True) == 9
    bundled = Vocabulary.bundled("perceptual")
    assert bundled.count("The highlight and the highlights pop, pops, stand out and stands out") == 3


def test_a_term_may_hold_punctuation() -> None:
    assert found(of("f/2.8", "f", "no. 1"), "At f/2.8, no. 1 of f") == ["f/2.8", "no. 1", "f"]


def test_an_exact_term_matches_as_it_is_written() -> None:
    vocabulary = of("=light", "lighting")
    assert found(vocabulary, "Light lighting lightly lighter lights") == ["light", "lighting"]


def test_a_term_goes_before_the_inflection_of_another() -> None:
    assert found(of("colour", "coloured"), "colored, colours") == ["coloured", "colour"]
    assert found(of("coloured", "colour"), "colored, colours") == ["coloured", "colour"]


def test_repeats_count_once_unless_wanted() -> None:
    vocabulary = of("noise", "blur")
    assert vocabulary.count("Noise, noise and blur, blurred noise") == 2
    assert vocabulary.count("Noise, noise and blur, blurred noise", repeats=True) == 5


_WORDS = st.sampled_from(["red", "deep", "blue", "light", "of", "field", "reddish", "x"])


@settings(max_examples=300, deadline=None)
@given(st.sets(st.lists(_WORDS, min_size=1, max_size=3).map(" ".join), min_size=1), st.lists(_WORDS, max_size=20))
def test_matching_is_what_a_regular_expression_finds(terms: set[str], text: list[str]) -> None:
    """Exact terms, longest first, from left to right, in an implementation that shares nothing with ours."""
    ordered = "|".join(map(re.escape, sorted(terms, key=lambda t: -t.count(" "))))
    expected = re.findall(rf"(?<!\S)(?:{ordered})(?!\S)", " ".join(text))
    assert found(of(*(f"={term}" for term in terms)), " ".join(text)) == expected


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_can_be_matched(text: str) -> None:
    parts = tokens(text)
    for match in Vocabulary.bundled("perceptual").matches(text):
        assert 0 <= match.start < match.end <= len(parts)
        assert all(parts[match.start : match.end])


@pytest.mark.parametrize(
    "between",
    [". ", ", ", "; ", ": ", " (", "! ", "\n", "... ", " - ", " \u2013 ", "\u2014", "/", " | ", " [", "\u3002"],
)
def test_a_term_does_not_reach_across_punctuation(between: str) -> None:
    vocabulary = of("low contrast", "contrast", "noise")
    assert found(vocabulary, f"The noise is low{between}contrast is fine") == ["noise", "contrast"]
    assert found(vocabulary, "low-contrast, 'low' contrast") == ["low contrast"] * 2
    assert len(words(f"low{between}contrast")) == 2


@pytest.mark.parametrize(
    "text", ["moir\u00e9 clich\u00e9", "moire\u0301 cliche\u0301", "Moire\u0301s, CLICH\u00c9S", "moire cliche"]
)
def test_accents_do_not_matter(text: str) -> None:
    assert found(of("moire", "cliche"), text) == ["moire", "cliche"]
    assert found(of("moir\u00e9", "clich\u00e9"), text) == ["moir\u00e9", "clich\u00e9"]


def test_what_ships_does_not_count_other_words_that_look_like_inflections() -> None:
    perceptual, semantic = Vocabulary.bundled("perceptual"), Vocabulary.bundled("semantic")
    assert found(perceptual, "Flowers, a flower, a litter of puppies, an ocean liner beside a clearing") == []
    assert found(perceptual, "simply a bowl of oranges, peaches and olives beside scales and three novels") == []
    assert found(perceptual, "The lines flow; a flowing, brightly lit orange shape") == [
        "line",
        "flow",
        "flow",
        "brightly lit",
        "orange",
        "shape",
    ]
    assert found(semantic, "in a balanced manner, being bright in each corner, uniformly, early and pearly") == []
    assert found(semantic, "a man with corn and flowers") == ["man", "corn", "flower"]


@given(st.text(alphabet="abeilnrsuy", min_size=1, max_size=9))
def test_a_word_is_one_of_its_forms(word: str) -> None:
    assert word in inflections(word)


def test_what_ships_is_large_grouped_and_apart() -> None:
    perceptual, semantic = Vocabulary.bundled("perceptual"), Vocabulary.bundled("semantic")
    sizes = Counter(perceptual.groups.values())
    assert len(perceptual) > 700
    assert min(sizes.values()) >= 20
    for group in ("clarity", "light", "colour", "contrast", "composition"):
        assert group in sizes
    assert any("noise" in group for group in sizes)
    assert any("emotion" in group for group in sizes)
    assert any("depth" in group for group in sizes)
    assert len(semantic) > 500
    assert not perceptual.groups.keys() & semantic.groups.keys()
    for term in perceptual.groups:
        assert perceptual.count(f"x {term} y") == 1, term


def test_a_rich_and_a_poor_description() -> None:
    vocabulary = Vocabulary.bundled("perceptual")
    rich = (
        "The image is slightly blurry with visible noise in the shadows, the colours are washed out and "
        "the composition is unbalanced, although the lighting is soft."
    )
    assert vocabulary.count(rich) >= 7
    assert vocabulary.count("Two dogs are playing with a ball in the park near the lake.") < 3


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("\ufeff# mine\nbokeh\n\n[tone]\nMoody,  film   look # two\n=soft\nbokeh\n", encoding="utf-8")
    vocabulary = Vocabulary.read(path)
    assert vocabulary.groups == {"bokeh": "", "moody": "tone", "film look": "tone", "soft": "tone"}
    assert found(vocabulary, "Softer, soft film looks") == ["soft", "film look"]
    assert vocabulary.sha256 != of("bokeh").sha256


@pytest.mark.parametrize("content", [b"", b"# nothing\n[a]\n,,\n", b"\xff\xfe"])
def test_a_file_without_terms_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"holds no terms|cannot be read"):
        Vocabulary.read(tmp_path / "v.txt")
    with pytest.raises(TrainingError, match="cannot be read"):
        Vocabulary.read(tmp_path / "none.txt")
