"""``declip score``: photos in, scores out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import click

from declip_runtime.errors import DeclipError, UsageError
from declip_runtime.images import DEFAULT_MAX_PIXELS
from declip_runtime.options import MAX_VIEWS, Precision
from declip_runtime.scorer import Scorer
from declip_runtime.scores import Score

from .heif import register_heif
from .options import backend_options, engine_option
from .output import FORMATS, Output, choose_format, file_or_standard_output, open_output, require_place
from .paths import explained, find_images, read_list, read_paths, require_images
from .progress import loading, progress_bar
from .report import Report
from .rows import Csv, Json, JsonLines, Writer
from .say import say
from .table import TableWriter

_HEADINGS = {"csv": 1, "jsonl": 0}
"""Lines before the first row, in the formats of which a part is of use."""


@click.command("score")
@click.argument("paths", nargs=-1, required=True)
@click.option("--recursive", "-r", is_flag=True, help="Enter the subfolders of folders.")
@engine_option
@click.option(
    "--views",
    type=click.IntRange(1, MAX_VIEWS),
    default=1,
    show_default=True,
    help="The whole and N-1 crops at native resolution; compare with scores of the same N only.",
)
@click.option("--format", "format_", type=click.Choice(FORMATS), help="Default: table in a terminal, csv in a pipe.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    callback=file_or_standard_output,
    help="Write a file; its extension picks the format. - is standard output.",
)
@click.option("--sort", metavar="NAME", help="Highest of this score first (table: the first quality score).")
@click.option("--min", "minimums", metavar="NAME=0.4", multiple=True, help="Keep images that reach it; repeatable.")
@click.option("--top", type=click.IntRange(1), metavar="N", help="Keep the best N, by --sort; failed ones stay listed.")
@backend_options
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images through the model at once.")
@click.option("--exact", is_flag=True, help="Decode every pixel of large JPEGs instead of a reduced scale.")
@click.option("--gpu-decode", is_flag=True, help="Decode every pixel of JPEGs on the GPU, by nvImageCodec.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=DEFAULT_MAX_PIXELS,
    metavar="N",
    show_default=True,
    help="Of an image; larger ones fail.",
)
@click.option("--null", "-0", "null", is_flag=True, help="Paths on standard input end in NUL instead of newline.")
@click.pass_context
def command(
    context: click.Context,
    paths: tuple[str, ...],
    recursive: bool,
    engine: str | None,
    views: int,
    format_: str | None,
    output: Path | None,
    sort: str | None,
    minimums: tuple[str, ...],
    top: int | None,
    backend: str,
    device: str | None,
    precision: Precision,
    threads: int | None,
    batch_size: int | None,
    exact: bool,
    gpu_decode: bool,
    max_pixels: int,
    null: bool,
) -> None:
    """Score photos: files, folders, or - for paths on standard input.

    Of a folder every file with the extension of an image is scored. Passed over, and counted at the end, are
    subfolders without -r, links to folders, hidden images, and formats that cannot be decoded here (HEIC, camera raw);
    hidden folders are never looked at. What is named as an argument is always tried.

    With - every line is one image; with --format jsonl each is answered at once, in order, so that a program in any
    language can keep one scorer running and talk to it.

    Machine formats keep the input's order unless --sort or --top is given. Images that fail are always reported. CSV
    and JSON lines say in scored_with, JSON at its head, what made a score: engine id, backend, precision, decode, views
    and preprocessing. Compare scores only where that is the same.

    Exit codes: 0 all scored, 1 some failed, 2 wrong use or a backend that fails, 130 interrupted, 143 terminated. What
    was done by then is written.
    """
    if exact and gpu_decode:
        raise click.UsageError("--exact decodes on the CPU and --gpu-decode on the GPU. Give one of them.")
    register_heif()
    chosen = choose_format(format_, output)
    answering = "-" in paths and chosen == "jsonl" and output is None
    if answering:
        _refuse_silence({"--sort": sort is not None, "--min": bool(minimums), "--top": top is not None})
    if output is not None:
        require_place(output, [*paths, *([] if engine is None else [str(engine)])])
    report = Report(minimums)
    sources = _sources(paths, recursive, b"\0" if null else b"\n", answering, report)
    with loading():
        scorer = Scorer(
            engine,
            backend=backend,
            device=device,
            precision=precision,
            batch_size=batch_size,
            threads=threads,
            decode="gpu" if gpu_decode else "exact" if exact else "fast",
            views=views,
            max_pixels=max_pixels,
        )
    lead = _lead(scorer, sort)
    keep = _filter(minimums, scorer.names)
    order = lead if sort is not None or top is not None or chosen == "table" else None
    if scorer.backend == "fake":
        say("these scores are made up by the fake backend, for testing pipelines only")
    with scorer:
        with open_output(output, _HEADINGS.get(chosen)) as stream:
            new_writer = partial(_writer, chosen, stream, scorer, lead, views)
            if order is None:  # rows appear as they come; in the same terminal a bar would be drawn over them
                writer = new_writer()
                with progress_bar(report.total, shown=not stream.isatty()) as advance:
                    _score(scorer, sources, writer.write, keep, report, advance)
            else:
                waiting: list[Score] = []
                with progress_bar(report.total, shown=True) as advance:
                    _score(scorer, sources, waiting.append, keep, report, advance)
                best = _best(waiting, order, top)
                report.left_out += len(waiting) - len(best)
                writer = new_writer()
                for score in best:
                    writer.write(score)
            writer.finish(report.left_out)
            seen, stream.incomplete = stream.isatty(), report.stopped is not None
        report.finish(scorer, stream.place, reasons=not seen, failures=not (seen and chosen == "table"))
    if stream.place != output:
        say(f"{output} stays as it was: what was done is in {stream.place}")
    if isinstance(report.stopped, DeclipError):
        raise report.stopped
    context.exit(report.exit_code)


def _score(
    scorer: Scorer,
    sources: Iterable[str],
    take: Callable[[Score], None],
    keep: Callable[[Score], bool],
    report: Report,
    advance: Callable[[], None],
) -> None:
    """Score until the end, Ctrl-C or an error, and hand over at once what is to be kept."""
    start = time.perf_counter()
    try:
        with closing(scorer.stream(sources)) as scores:
            for score in map(explained, scores):
                report.add(score)
                if keep(score):
                    take(score)
                else:
                    report.left_out += 1
                advance()
    except (KeyboardInterrupt, DeclipError) as stopped:  # failing to write is neither of them
        if not report.done:
            raise
        report.stopped = stopped
    report.seconds = time.perf_counter() - start


def _best(scores: Sequence[Score], order: str, top: int | None) -> list[Score]:
    """The ``top`` or all, highest ``order`` first; then what failed."""
    good = sorted((s for s in scores if s.error is None), key=lambda s: -s[order])
    return good[:top] + [s for s in scores if s.error is not None]


def _refuse_silence(given: Mapping[str, bool]) -> None:
    """A program that sent a path waits for its answer, and would wait for ever for one that is filtered or sorted."""
    if options := [name for name, used in given.items() if used]:
        raise UsageError(
            f"- with --format jsonl answers every path at once, in order, so {', '.join(options)} cannot be used there."
            " Leave it out, write a file with -o, or choose --format csv."
        )


def _sources(paths: Sequence[str], recursive: bool, separator: bytes, answering: bool, report: Report) -> Iterable[str]:
    """Images as arguments and folders have them, or as they arrive on standard input; there each line is answered, or
    all are a list.
    """
    if "-" in paths:
        if len(paths) > 1:
            raise UsageError("- reads all paths from standard input. Give it alone.")
        if sys.stdin is None:
            raise UsageError("standard input is closed. Give paths as arguments, or redirect it from a file.")
        return (read_paths if answering else read_list)(sys.stdin.fileno(), separator)
    found = find_images(paths, recursive)
    report.found(found)
    require_images(found, paths)
    return found.images


def _lead(scorer: Scorer, sort: str | None) -> str:
    """The score to sort by: the one named, else the first where higher is better."""
    if sort is None:
        specs = scorer.manifest.scores
        return next((s.name for s in specs if s.kind == "quality"), specs[0].name)
    if sort not in scorer.names:
        raise UsageError(f"--sort {sort}: there is no such score. This engine gives: {', '.join(scorer.names)}.")
    return sort


def _filter(minimums: Sequence[str], names: Sequence[str]) -> Callable[[Score], bool]:
    """Failed images pass: nobody knows their scores, and they are to be seen."""
    bounds: dict[str, float] = {}
    for text in minimums:
        name, _, number = text.partition("=")
        if name not in names:
            raise UsageError(f"--min {text}: there is no score {name!r}. This engine gives: {', '.join(names)}.")
        try:
            bounds[name] = float(number)
        except ValueError:
            bounds[name] = math.nan
        if math.isnan(bounds[name]):
            raise UsageError(f"--min {text}: give a number, as in --min {name}=0.4.")
    return lambda score: score.error is not None or all(score[name] >= low for name, low in bounds.items())


def _writer(format_: str, stream: Output, scorer: Scorer, lead: str, views: int) -> Writer:
    if format_ == "jsonl":
        return JsonLines(stream, scorer.identity)
    if format_ == "csv":
        return Csv(stream, scorer.names, scorer.identity)
    if format_ == "json":
        return Json(stream, {"name": scorer.manifest.name, **scorer.identity})
    return TableWriter(stream, scorer.manifest.scores, lead, views)
