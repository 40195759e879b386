"""``declip i2t filter``: from published data sets to candidates for relabelling."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console, RenderableType
from rich.table import Table

from declip_runtime.errors import UsageError
from declip_sdk.cli.output import Output, open_output, standard_output
from declip_sdk.cli.progress import working
from declip_sdk.cli.say import say
from declip_sdk.cli.screen import draw, printable
from declip_sdk.cli.text import count

from .common import FILE, require_output, tell, vocabularies, vocabulary_option

if TYPE_CHECKING:
    from declip_training.i2t.selection import Selection, Texts

FORMATS = ("aesexpert", "q-instruct", "sharegpt4v", "ava-comments", "table")


@click.command("filter", short_help="Keep descriptions rich in perceptual words.")
@click.option(
    "--source",
    "sources",
    type=(click.Choice(FORMATS), FILE, FILE),
    metavar="FORMAT FILE IMAGES",
    multiple=True,
    required=True,
    help=f"Format ({', '.join(FORMATS)}), annotations, and the folder that image paths start from. Repeatable.",
)
@click.option("-o", "--output", type=FILE, required=True, help="Candidates, as JSON Lines.")
@click.option("--minimum", type=click.IntRange(0), default=7, show_default=True, help="Fewest perceptual terms.")
@click.option("--count-repeats", is_flag=True, help="Count a term each time it occurs, not once a text.")
@click.option(
    "--texts",
    type=click.Choice(["richest", "joined", "each"]),
    default="richest",
    show_default=True,
    help="Of several texts of an image: the one with most terms, all as one, or each by itself.",
)
@vocabulary_option
@click.option("--image-column", default="image", show_default=True, metavar="NAME", help="For --source table.")
@click.option("--text-column", default="text", show_default=True, metavar="NAME", help="For --source table.")
@click.option("--type-column", metavar="NAME", help="For --source table: the column of image types.")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Type of the images whose path fits, as in 'wikiart/*=Art'; the first that fits counts. Repeatable.",
)
def filter_(
    sources: tuple[tuple[str, Path, Path], ...],
    output: Path,
    minimum: int,
    count_repeats: bool,
    texts: Texts,
    vocabulary: Path | None,
    image_column: str,
    text_column: str,
    type_column: str | None,
    types: tuple[str, ...],
) -> None:
    """Keep human descriptions that are rich in perceptual words, one an image.

    \b
    declip i2t filter --source q-instruct q-instruct/cleaned_labels.json q-instruct \\
                      --source ava-comments DPC2022/anotation/clean_and_all_score AVA/images -o candidates.jsonl

    FILE is the JSON file of AesMMIT (aesexpert), Q-Instruct or ShareGPT4V, the folder of JSON files of DPC2022 or
    AVA_Comments_Full.txt (ava-comments), or any JSONL, CSV or Parquet (table). What cannot be used is counted and shown
    with examples.
    """
    from declip_training.i2t.candidates import candidate_lines
    from declip_training.i2t.selection import select
    from declip_training.i2t.sources import Columns, Source, read_source
    from declip_training.i2t.tally import Tally

    opened = [Source(*source) for source in sources]
    rules = [_rule(text) for text in types]
    require_output(output, vocabulary, *(source.path for source in opened))
    if output.suffix.lower() in (".parquet", ".csv", ".json"):
        raise UsageError(f"{output} will hold JSON lines. Give it a name that ends in .jsonl.")
    words = vocabularies(vocabulary).perceptual
    columns = Columns(image_column, text_column, type_column)
    tallies = [Tally() for _ in opened]
    with working("reading"):
        described = (
            one
            for source, tally in zip(opened, tallies, strict=True)
            for one in read_source(source, tally, columns=columns, types=rules)
        )
        selection = select(described, words, minimum=minimum, repeats=count_repeats, texts=texts)
    for source, tally in zip(opened, tallies, strict=True):
        tell(tally, source.name)
    if selection.repeated:
        say(f"{count(selection.repeated, 'description')} left out that two files of one data set share")
    with open_output(output) as stream:
        for line in candidate_lines(selection.kept):
            stream.write(line)
    of = selection.texts if texts == "each" else selection.images
    _draw(standard_output(), selection, of, "texts" if texts == "each" else "images", [s.name for s in opened])
    say(f"{count(len(selection.kept), 'candidate')} with at least {minimum} of {len(words):,} terms in {output}")


def _rule(text: str) -> tuple[str, str]:
    pattern, equals, kind = text.rpartition("=")
    if not (pattern and equals and kind):
        raise UsageError(f"--type {text}: give a pattern and a type, as in --type 'wikiart/*=Art'.")
    return pattern, kind


def _draw(stream: Output, selection: Selection, of: Counter[tuple[str, str]], what: str, sources: list[str]) -> None:
    """The paper's Table 1, with what was read beside what was kept; shares are ``of`` all images, or texts."""
    kept = selection.kept_counts()
    names = list(dict.fromkeys(sources))
    rows = [(name, [key for key in selection.texts if key[0] == name]) for name in names]
    if len(rows) > 1:
        rows.append(("all", list(selection.texts)))

    def build(console: Console) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for heading in ("source", "texts", "images", "kept", f"of {what}", f"image types (kept of {what})"):
            table.add_column(heading, justify="left" if heading[0] in "s" or "types" in heading else "right")
        for name, keys in rows:
            texts, images, taken = (sum(c[key] for key in keys) for c in (selection.texts, selection.images, kept))
            read = sum(of[key] for key in keys)
            kinds: dict[str, list[int]] = {}
            for key in keys:
                counts = kinds.setdefault(key[1], [0, 0])
                counts[0], counts[1] = counts[0] + kept[key], counts[1] + of[key]
            types = ", ".join(f"{kind} {k:,} of {n:,}" for kind, (k, n) in sorted(kinds.items()))
            share = f"{taken / read:.0%}" if read else ""
            cells = (
                printable(name, console),
                f"{texts:,}",
                f"{images:,}",
                f"{taken:,}",
                share,
                printable(types, console),
            )
            table.add_row(*cells)
        return table

    draw(stream, build)
