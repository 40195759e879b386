"""What makes a reply acceptable: its form, its language, and that its two texts are apart."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from declip_training.i2t.decoupling import Limits, Vocabularies, coupling
from declip_training.i2t.language import foreign
from declip_training.i2t.reply import Descriptions, Judge, ReplyError, parse

from .chat_server import PERCEPTUAL, SEMANTIC, reply_text

WANTED = Descriptions("Soft {light}.", 'A "dog".')
OBJECT = json.dumps({"perceptual": WANTED.perceptual, "semantic": WANTED.semantic})


@pytest.mark.parametrize(
    "reply",
    [
        OBJECT,
        f"```json\n{OBJECT}\n```",
        f"Sure! Here it is:\n\n{OBJECT}\n\nLet me know if {{you}} need more.",
        f"<think>I need {{perceptual, semantic}} here, {{'a': 1}}</think>{OBJECT}",
        f"<think>Perhaps {OBJECT}? No.</think>\n\n{OBJECT}",
        f"Perhaps {OBJECT}? No.{' Hm.' * 9_000}\n</think>\n{OBJECT}",
        f"{{{OBJECT}",
        json.dumps({"semantic": f"\n{WANTED.semantic} ", "perceptual": "Soft\n  {light}."}, indent=2),
    ],
)
def test_exactly_one_object_is_found_in_prose(reply: str) -> None:
    assert parse(reply) == WANTED


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no JSON object"),
        (f"<think>Let me draft: {OBJECT} Hmm, there is no dog, so", "ends in the middle of a thought"),
        (f"<think>No.</think><think>Perhaps {OBJECT}", "ends in the middle of a thought"),
        ("null", "no JSON object"),
        ('"perceptual"', "no JSON object"),
        (OBJECT[:-1], "no JSON object"),
        (OBJECT.replace('"', "'"), "no JSON object"),
        (f"{OBJECT}\n{OBJECT}", "2 JSON objects"),
        (f"{{}} {OBJECT}", "2 JSON objects"),
        ("{}", "the keys are none"),
        ('{"perceptual": "a"}', "the keys are 'perceptual'"),
        ('{"perceptual": "a", "semantic": "b", "note": "c"}', "the keys are 'perceptual', 'semantic', 'note'"),
        ('{"perceptual": "a", "perceptual": "b", "semantic": "c"}', "the keys are 'perceptual', 'perceptual'"),
        (f'{{"result": {OBJECT}}}', "the keys are 'result'"),
        ('{"perceptual": ["a"], "semantic": "b"}', "the perceptual text is empty or no text"),
        ('{"perceptual": "a", "semantic": "\\n"}', "the semantic text is empty or no text"),
        ('{"perceptual": "a", "semantic": null}', "the semantic text is empty or no text"),
        ('{"perceptual": "a", "semantic": "\\ud83d"}', "half a character"),
        ('{"a":' * 3_000, "nested too deeply|no JSON object"),
        ("[" * 20_000, "no JSON object"),
        ("{" * 20_000, "no JSON object"),
        (f"{OBJECT}{' ' * 20_000}", "characters, more than 20000"),
    ],
)
def test_another_form_is_refused_with_the_reason(reply: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=reason):
        parse(reply)


@given(st.text(max_size=60))
def test_any_reply_is_parsed_or_refused(reply: str) -> None:
    with contextlib.suppress(ReplyError):
        assert parse(reply).perceptual


def test_good_texts_are_accepted(judge: Judge) -> None:
    assert judge.accept(reply_text()) == Descriptions(PERCEPTUAL, SEMANTIC)


ENGLISH = [
    PERCEPTUAL,
    SEMANTIC,
    "Sharp focus, soft warm light, muted tones, balanced composition.",
    "A façade of a café in São Paulo with people at tables.",
    "An okapi and two quokkas stand beside a baobab.",
]
OTHERS = {
    "Spanish": "La foto es nítida y está bien iluminada, con luz suave y colores apagados.",
    "German": "Das Foto ist scharf und gut ausgeleuchtet, mit weichem Licht und gedeckten Farben.",
    "French": "La photo est nette et bien éclairée, avec une lumière douce et des couleurs sourdes.",
    "Portuguese": "A foto é nítida e bem iluminada, com luz suave e cores discretas.",
    "Italian": "La foto è nitida e ben illuminata, con luce morbida; in primo piano un gatto.",
    "Dutch": "De foto is scherp en goed belicht, met zacht warm licht en een evenwichtige compositie.",
    "Swedish": "Fotografiet är skarpt och väl belyst, med mjukt ljus och dämpade färger.",
    "Polish": "Zdjęcie jest ostre i dobrze oświetlone, z miękkim światłem i stonowanymi kolorami.",
    "Turkish": "Fotoğraf keskin ve iyi aydınlatılmış, yumuşak ışık ve dengeli bir kompozisyon var.",  # noqa: RUF001
    "Indonesian": "Foto ini tajam dan terang, dengan cahaya lembut dan warna yang redup.",
    "Vietnamese": "Bức ảnh sắc nét và đủ sáng, với ánh sáng dịu và màu sắc trầm.",
    "Chinese": "照片清晰,光线柔和,构图平衡。",
    "Chinese with English words": "照片 sharp,光线柔和 soft light,构图平衡 balanced",
    "Japanese": "写真は鮮明で、光は柔らかく、構図はバランスが取れています。",
    "Russian": "Фотография резкая и хорошо освещена, с мягким светом.",  # noqa: RUF001
    "Arabic": "الصورة حادة ومضاءة جيدًا بضوء ناعم.",
    "Hindi": "तस्वीर स्पष्ट और अच्छी रोशनी वाली है।",
    "numbers": "1 2 3 - 4!",
}


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_taken_for_english(text: str, vocabularies: Vocabularies) -> None:
    assert foreign(text, vocabularies) is None


@pytest.mark.parametrize("language", list(OTHERS))
def test_other_languages_are_not(language: str, vocabularies: Vocabularies) -> None:
    assert foreign(OTHERS[language], vocabularies) is not None


def test_shares_are_of_content_words(vocabularies: Vocabularies) -> None:
    """Content: brown dog runs / soft light / blurred background; *the*, *through*, *with*, *image* are none."""
    text = "The image: the brown dog runs through soft light with a blurred background"
    shares = vocabularies.shares_of_perceptual(text)
    assert (shares.content, shares.terms) == (7, 3)
    assert shares.perceptual == pytest.approx(5 / 7)
    assert shares.semantic == pytest.approx(2 / 7)
    assert vocabularies.shares_of_perceptual("").perceptual == 0


def test_a_word_of_both_vocabularies_counts_for_what_the_text_is_meant_to_be() -> None:
    from declip_training.i2t.vocabulary import Vocabulary

    both = Vocabularies(Vocabulary({"frost": ""}), Vocabulary({"frost": ""}), Vocabulary({"the": ""}))
    as_perceptual, as_semantic = both.shares_of_perceptual("the frost"), both.shares_of_semantic("the frost")
    assert (as_perceptual.perceptual, as_perceptual.semantic) == (1, 0)
    assert (as_semantic.perceptual, as_semantic.semantic) == (0, 1)


@pytest.mark.parametrize(
    ("perceptual", "semantic", "reason"),
    [
        (PERCEPTUAL, SEMANTIC, None),
        (SEMANTIC, PERCEPTUAL, "the perceptual text holds 1 perceptual terms, fewer than 3"),
        ("A sharp, well lit, noisy photo of a woman with an umbrella beside a river.", SEMANTIC, "43% semantic"),
        (PERCEPTUAL, PERCEPTUAL, "the semantic text is 94% perceptual"),
        (PERCEPTUAL, "Soft warm light falls on a dog in a balanced composition with a calm mood.", "% perceptual"),
        (PERCEPTUAL, "An okapi and a quokka.", "the semantic text is 0% semantic"),
        ("Zyx qwv with blur, noise, grain among vrt plm kjh fds wqa zxc bnm.", SEMANTIC, "% perceptual, less than 35%"),
    ],
)
def test_texts_that_are_not_apart_are_found(
    perceptual: str, semantic: str, reason: str | None, vocabularies: Vocabularies
) -> None:
    found = coupling(perceptual, semantic, vocabularies, Limits())
    assert found is None if reason is None else found is not None and reason in found, found


def test_limits_move_what_is_accepted(vocabularies: Vocabularies) -> None:
    assert coupling(PERCEPTUAL, SEMANTIC, vocabularies, Limits(semantic_maximum_perceptual=0.0)) is not None
    assert (
        coupling(PERCEPTUAL, PERCEPTUAL, vocabularies, Limits(semantic_maximum_perceptual=1, semantic_minimum=0))
        is None
    )
