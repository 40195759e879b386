"""``declip i2t stats``, ``check`` and ``show``: what came out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from declip_runtime.errors import UsageError
from declip_sdk.cli.heif import register_heif
from declip_sdk.cli.output import Output, open_output, standard_output
from declip_sdk.cli.say import say
from declip_sdk.cli.screen import draw, printable
from declip_sdk.cli.text import count

from .common import FILE, advancing, judge, judge_options, require_output, tell, vocabularies, vocabulary_option

if TYPE_CHECKING:
    from declip_training.i2t.summary import Summary

_MOST = 12


@click.command("stats", short_help="Count what came out.")
@click.argument("table", type=FILE)
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True)
@vocabulary_option
def stats(table: Path, format_: str, vocabulary: Path | None) -> None:
    """Count what is in an I&2T table: sources, image types, lengths, shares of both vocabularies, frequent terms."""
    from declip_training.i2t.records import read_provenance, read_records
    from declip_training.i2t.summary import summarise

    found = summarise(read_records(table), vocabularies(vocabulary))
    provenance = read_provenance(table)
    if format_ == "json":
        click.echo(json.dumps(_document(found, provenance), indent=2))
    else:
        _draw(standard_output(), found, provenance)


@click.command("check", short_help="Verify ids, texts, images and hashes.")
@click.argument("table", type=FILE)
@click.option("--no-images", is_flag=True, help="Leave out opening and hashing the images, which takes longest.")
@judge_options
@click.pass_context
def check(
    context: click.Context,
    table: Path,
    no_images: bool,
    vocabulary: Path | None,
    limits: tuple[str, ...],
    max_words: int,
) -> None:
    """Verify an I&2T table: ids, texts, language, decoupling; that images open and match their hashes.

    Exit codes: 0 all is well, 1 something is wrong (counted, with examples), 2 the file cannot be read.
    """
    from declip_training.i2t.checking import check_table

    register_heif()
    judging = judge(vocabulary, limits, max_words)
    with advancing("checking", None) as advance:
        rows, problems = check_table(table, judging, images=not no_images, advance=advance)
    tell(problems, table.name)
    number = sum(problems.counts.values())
    say(f"{count(rows, 'row')}, {count(number, 'problem')}" + (", images not looked at" if no_images else ""))
    context.exit(1 if problems else 0)


@click.command("show", short_help="Make an HTML page to look at.")
@click.argument("table", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The page, an .html file.")
@click.option("--number", type=click.IntRange(1), default=100, show_default=True, help="Records drawn at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed draws others.")
@click.option("--source", metavar="NAME", help="Only records of this source.")
@click.pass_context
def show(context: click.Context, table: Path, output: Path, number: int, seed: int, source: str | None) -> None:
    """Make one HTML page with images and both descriptions, to look at in a browser and to pass on.

    Exit codes: 0 all is shown, 1 some images could not be opened, 2 the table cannot be read.
    """
    from declip_training.i2t.page import page, sample
    from declip_training.i2t.records import read_records

    register_heif()
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output} is no name for a page. Let it end in .html.")
    require_output(output, table)
    records = read_records(table)
    names = Counter(record.source for record in records)
    if source is not None and source not in names:
        raise UsageError(f"--source {source}: there are no such records. {table} has: {', '.join(sorted(names))}.")
    chosen = sample([r for r in records if source in (None, r.source)], number, seed)
    subtitle = f"{len(chosen):,} of {len(records):,} records, drawn with seed {seed}"
    unreadable: list[str] = []
    with open_output(output) as stream, advancing("drawing", len(chosen)) as advance:
        for piece in page(table, chosen, subtitle, unreadable.append):
            stream.write(piece.encode())
            advance()
    for reason in unreadable[:3]:
        say(reason)
    lost = f", {count(len(unreadable), 'image')} could not be opened" if unreadable else ""
    say(f"{count(len(chosen), 'record')} in {output}{lost}")
    context.exit(1 if unreadable else 0)


def _document(found: Summary, provenance: dict[str, str]) -> dict[str, object]:
    counts = [{"source": s, "image_type": t, "records": n} for (s, t), n in found.by_source.most_common()]
    texts = {"perceptual": vars(found.perceptual), "semantic": vars(found.semantic)}
    return {
        "records": found.records,
        "images": found.images,
        "by_source": counts,
        **texts,
        "groups": dict(found.groups.most_common()),
        "terms": dict(found.terms.most_common()),
        "provenance": provenance,
    }


def _draw(stream: Output, found: Summary, provenance: dict[str, str]) -> None:
    def build(console: Console) -> RenderableType:
        sources = _table("source", "image type", "records")
        for (source, kind), number in found.by_source.most_common():
            sources.add_row(printable(source, console), printable(kind, console), f"{number:,}")
        sources.add_row("all", count(found.images, "image"), f"{found.records:,}")
        texts = _table("text", "median words", "longest", "perceptual", "semantic")
        for name, numbers in (("perceptual", found.perceptual), ("semantic", found.semantic)):
            shares = (f"{numbers.perceptual:.0%}", f"{numbers.semantic:.0%}")
            texts.add_row(name, f"{numbers.median_words:g}", str(numbers.longest), *shares)
        groups = _table("group", "perceptual texts")
        for name, number in found.groups.most_common():
            groups.add_row(printable(name or "(no group)", console), f"{number / found.records:.0%}")
        frequent = ", ".join(f"{term} {n:,}" for term, n in found.terms.most_common(_MOST))
        parts: list[RenderableType] = [
            sources,
            "",
            texts,
            "",
            groups,
            "",
            printable(f"most frequent: {frequent}", console),
        ]
        parts += [printable(f"{key}: {value}", console) for key, value in provenance.items()]
        return Group(*parts)

    draw(stream, build)


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 or heading == "image type" else "right")
    return table
