"""``declip score``: photos in, scores out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import click

from declip_runtime.errors import DeclipError, UsageError
from declip_runtime.images import DEFAULT_MAX_PIXELS
from declip_runtime.options import Precision
from declip_runtime.scorer import Scorer
from declip_runtime.scores import Score

from .options import backend_options, engine_option
from .output import FORMATS, Output, choose_format, open_output, require_place
from .paths import IMAGE_SUFFIXES, explained, find_images, read_paths
from .progress import loading, progress_bar
from .report import Report
from .rows import Csv, Json, JsonLines, Writer
from .table import TableWriter


@click.command("score")
@click.argument("paths", nargs=-1, required=True)
@click.option("--recursive", "-r", is_flag=True, help="Enter the subfolders of folders.")
@engine_option
@click.option("--views", type=click.IntRange(1), default=1, metavar="N", help="1 + N-1 crops at native resolution.")
@click.option("--format", "format_", type=click.Choice(FORMATS), help="Default: table in a terminal, csv in a pipe.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a file; its extension picks the format.")
@click.option("--sort", metavar="NAME", help="Highest of this score first (table: the first quality score).")
@click.option("--min", "minimums", metavar="NAME=0.4", multiple=True, help="Keep images that reach it; repeatable.")
@click.option("--top", type=click.IntRange(1), metavar="N", help="Keep the best N, by --sort; failed ones stay listed.")
@backend_options
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images through the model at once.")
@click.option("--exact", is_flag=True, help="Decode every pixel of large JPEGs instead of a reduced scale.")
@click.option("--max-pixels", type=click.IntRange(1), default=DEFAULT_MAX_PIXELS, metavar="N", show_default=True)
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
    max_pixels: int,
    null: bool,
) -> None:
    """Score photos: files, folders, or - for paths on standard input.

    With - every line is one image; with --format jsonl each is answered at once, in order, so that a program in any
    language can keep one scorer running and talk to it.

    Machine formats keep the input's order unless --sort or --top is given. Images that fail are always reported.

    Exit codes: 0 all scored, 1 some failed, 2 wrong use or a backend that fails, 130 interrupted, 143 terminated. What
    was done by then is written.
    """
    chosen = choose_format(format_, output)
    if "-" in paths and chosen == "jsonl" and output is None:
        _refuse_silence({"--sort": sort is not None, "--min": bool(minimums), "--top": top is not None})
    report = Report()
    sources = _sources(paths, recursive, b"\0" if null else b"\n", report)
    if output is not None:
        require_place(output)
    with loading():
        scorer = Scorer(
            engine,
            backend=backend,
            device=device,
            precision=precision,
            batch_size=batch_size,
            threads=threads,
            decode="exact" if exact else "fast",
            views=views,
            max_pixels=max_pixels,
        )
    lead = _lead(scorer, sort)
    keep = _filter(minimums, scorer.names)
    order = lead if sort is not None or top is not None or chosen == "table" else None
    with scorer:
        with open_output(output) as stream:
            writer = _writer(chosen, stream, scorer, lead)
            rows_in_terminal = chosen in ("csv", "jsonl") and order is None and stream.isatty()
            with progress_bar(report.total, shown=not rows_in_terminal) as advance:
                left_out = _score(scorer, sources, writer, order, keep, top, report, advance)
            writer.finish(left_out)
        report.finish(scorer, output)
    if isinstance(report.stopped, DeclipError):
        raise report.stopped
    context.exit(report.exit_code)


def _score(
    scorer: Scorer,
    sources: Iterable[str],
    writer: Writer,
    order: str | None,
    keep: Callable[[Score], bool],
    top: int | None,
    report: Report,
    advance: Callable[[], None],
) -> int:
    """Score until the end, Ctrl-C or an error; write at once, or the ``top`` sorted by ``order`` when that is over.

    Returns how many images were scored and left out.
    """
    waiting: list[Score] = []
    left_out = 0
    start = time.perf_counter()
    try:
        with closing(scorer.stream(sources)) as scores:
            for score in map(explained, scores):
                report.add(score)
                if not keep(score):
                    left_out += 1
                elif order:
                    waiting.append(score)
                else:
                    writer.write(score)
                advance()
    except (KeyboardInterrupt, DeclipError) as stopped:  # failing to write is neither of them
        if not report.done:
            raise
        report.stopped = stopped
    report.seconds = time.perf_counter() - start
    if order:
        waiting.sort(key=lambda s: (s.error is not None, -s[order] if s.error is None else 0.0))
    good = sum(score.error is None for score in waiting)
    shown = good if top is None else min(top, good)
    for score in waiting[:shown] + waiting[good:]:
        writer.write(score)
    return left_out + good - shown


def _refuse_silence(given: Mapping[str, bool]) -> None:
    """A program that sent a path waits for its answer, and would wait for ever for one that is filtered or sorted."""
    if options := [name for name, used in given.items() if used]:
        raise UsageError(
            f"- with --format jsonl answers every path at once, in order, so {', '.join(options)} cannot be used there."
            " Leave it out, write a file with -o, or choose --format csv."
        )


def _sources(paths: Sequence[str], recursive: bool, separator: bytes, report: Report) -> Iterable[str]:
    if "-" in paths:
        if len(paths) > 1:
            raise UsageError("- reads all paths from standard input. Give it alone.")
        if sys.stdin is None:
            raise UsageError("standard input is closed. Give paths as arguments, or redirect it from a file.")
        return read_paths(sys.stdin.fileno(), separator)
    found = find_images(paths, recursive)
    report.found(found)
    if not found.images:
        deeper = "" if recursive else " --recursive enters subfolders."
        raise UsageError(f"no images in {', '.join(paths)} (looked for {' '.join(sorted(IMAGE_SUFFIXES))}).{deeper}")
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


def _writer(format_: str, stream: Output, scorer: Scorer, lead: str) -> Writer:
    if format_ == "jsonl":
        return JsonLines(stream)
    if format_ == "csv":
        return Csv(stream, scorer.names)
    if format_ == "json":
        return Json(stream, {"name": scorer.manifest.name, **scorer.identity})
    return TableWriter(stream, scorer.manifest.scores, lead)
