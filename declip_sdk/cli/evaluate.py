"""``declip evaluate``: scores against people's opinions on public data sets, several engines side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from declip_runtime.engine_file import EngineFile, bundled_engine
from declip_runtime.errors import TrainingError, UsageError
from declip_runtime.options import MAX_VIEWS, Precision
from declip_runtime.scorer import Scorer

from .agreement import Failure, agreement_page, data_sets, write_results
from .options import backend_options
from .output import standard_output, writing
from .progress import loading, progress_bar
from .report import SOME_FAILED
from .say import say
from .screen import draw
from .text import count

if TYPE_CHECKING:
    from declip_training.evaluation.datasets import Collection
    from declip_training.evaluation.results import Result
    from declip_training.evaluation.scoring import Scored, Settings

_SPLITS = ("test", "validation", "train", "all")
_NAMED = 5  # failed images on standard error
_EXTRA = "Evaluating needs SciPy. Run: pip install 'declip-sdk[train]'"


@click.command("evaluate")
@click.argument("engines", nargs=-1, metavar="[ENGINE]...")
@click.option("--data", multiple=True, metavar="NAME=PATH", help="A data set and its folder; repeatable.")
@click.option("--datasets", "list_datasets", is_flag=True, help="List the data sets: layout, direction, source.")
@click.option(
    "--score",
    metavar="NAME",
    help="Compared with overall opinions; default: quality, else the first where higher is better.",
)
@click.option("--split", type=click.Choice(_SPLITS), default="test", show_default=True, help="Of data that is split.")
@click.option("--views", type=click.IntRange(1, MAX_VIEWS), default=1, show_default=True, help="As in declip score.")
@click.option("--exact", is_flag=True, help="Decode every pixel of large JPEGs instead of a reduced scale.")
@click.option("--allow-missing", is_flag=True, help="Evaluate the images that are there, and count the others.")
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Of the bootstrap; 0 is none.")
@click.option(
    "--cache", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep scores there; default OUTPUT/scores."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER", help="Write tables, plots and scores there."
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="CSV that records looks at BIQ2021's Test; default the checkout's own, else in OUTPUT.",
)
@backend_options
@click.pass_context
def command(
    context: click.Context,
    engines: tuple[str, ...],
    data: tuple[str, ...],
    list_datasets: bool,
    score: str | None,
    split: str,
    views: int,
    exact: bool,
    allow_missing: bool,
    draws: int,
    cache: Path | None,
    output: Path | None,
    ledger: Path | None,
    backend: str,
    device: str | None,
    precision: Precision,
    threads: int | None,
) -> None:
    """Compare scores with people's opinions on public data sets.

    Each ENGINE (default: the bundled one) scores the photos of each data set, which lies in a folder in the layout its
    authors publish; --datasets says what is expected and how to get it. Shown are SRCC, KRCC, PLCC (raw, and after a
    logistic fit), RMSE and bootstrap intervals, beside the numbers of the DeCLIP paper. Attributes (SPAQ, PARA) are
    compared with the engine's scores of the same names. --split test is the official test split, or everything where
    none was published.

    With -o, or --cache, scores are kept as they come: a run that was stopped goes on with what is done, and another
    table of the same photos needs no model. BIQ2021's Test, which the bundled engine is judged by, is looked at on the
    record: a row is appended to a ledger, unless the scores are made up or the same look is on record there.

    \b
    declip evaluate --data koniq=KonIQ-10k --data spaq=SPAQ -o results
    declip evaluate clip.engine declip.engine --data livec=ChallengeDB_release -o results

    Exit codes: 0 all scored, 1 some images failed, 2 wrong use, 130 interrupted, 143 terminated.
    """
    if list_datasets:
        with _needing_scipy():
            click.echo(data_sets())
        return
    if not data:
        raise UsageError("there is no data set. Give one as --data NAME=PATH; declip evaluate --datasets lists them.")
    collections = _collect(data, split, allow_missing)
    files = _engines(engines)
    scores = {label: _score_name(label, file, score) for label, file in files.items()}
    if output is not None:
        from declip_training.evaluation.plots import require_matplotlib

        require_matplotlib()
        _make_folder(output)
    kept = cache if cache is not None else None if output is None else output / "scores"
    if kept is not None:
        _make_folder(kept)
    record = _recorder(collections, ledger, output, backend)

    from declip_training.evaluation.results import compare, opposed, without_score
    from declip_training.evaluation.scoring import Settings

    settings = Settings(backend, device, precision, threads, "exact" if exact else "fast", views)
    scored = {
        label: _score(file, settings, collections, kept, partial(record, file, scores[label]))
        for label, file in files.items()
    }
    results: list[Result] = []
    failures: list[Failure] = []
    for position, collection in enumerate(collections):
        here = {label: parts[position] for label, parts in scored.items()}
        failures += _failures(collection, here)
        results += compare(collection, here, scores, draws=draws)
        for label, attributes in without_score(collection, here).items():
            say(f"{label} has no score called {', '.join(attributes)}: not compared on {collection.dataset.title}")
        for label, file in files.items():
            for name in opposed(collection, file):
                say(f"{label} says how much {name} there is, {collection.dataset.title} how little: expect minus signs")
    draw(standard_output(), lambda console: agreement_page(results, console))
    if output is not None:
        write_results(output, results, failures)
    context.exit(SOME_FAILED if failures else 0)


def _collect(data: Sequence[str], split: str, allow_missing: bool) -> list[Collection]:
    """All tables and lists of images are read before anything is scored, which may take hours."""
    with _needing_scipy():
        from declip_training.evaluation.datasets import DATASETS, collect
        from declip_training.evaluation.metrics import MINIMUM
    collections: dict[str, Collection] = {}
    for text in data:
        name, equals, path = text.partition("=")
        if not (equals and name and path):
            raise UsageError(f"--data {text}: give a data set and its folder, as in --data koniq=KonIQ-10k.")
        if name not in DATASETS:
            near = get_close_matches(name, DATASETS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"--data {text}: there is no data set {name!r}.{hint} There are: {', '.join(DATASETS)}.")
        if name in collections:
            raise UsageError(f"--data {name}= stands there twice. Give each data set once.")
        found = collections[name] = collect(DATASETS[name], Path(path), split, allow_missing=allow_missing)
        if len(found.photos) < MINIMUM:
            raise UsageError(f"{found.dataset.title} has {len(found.photos)} photos there; {MINIMUM} are needed.")
        if found.missing:
            left = f"{len(found.missing):,} of {count(len(found.missing) + len(found.photos), 'image')}"
            say(f"{found.dataset.title}: {left} are not on disk and are left out, as {found.missing[0]}")
    return list(collections.values())


def _engines(paths: Sequence[str]) -> dict[str, EngineFile]:
    """Engines by a label that tells them apart: their name, else with the file's name, else with the id."""
    if "" in paths:
        raise UsageError("one of the engines is an empty path. Name a file; is a variable not set?")
    files = [EngineFile.open(path) for path in paths] or [EngineFile.open(bundled_engine())]
    for form in ("{0.manifest.name}", "{0.manifest.name} ({0.path.stem})", "{0.manifest.name} ({0.id:.8})"):
        labelled = {form.format(file): file for file in files}
        if len(labelled) == len(files):
            return labelled
    raise UsageError("one engine stands there twice. Give each once.")


def _score_name(label: str, file: EngineFile, wanted: str | None) -> str:
    """The score that overall opinions are compared with: as the paper does, the one for good and bad photos."""
    names = file.scorer.score_names
    if wanted is not None:
        if wanted not in names:
            raise UsageError(f"--score {wanted}: {label} has no such score. It gives: {', '.join(names)}.")
        return wanted
    qualities = [spec.name for spec in file.scorer.scores if spec.kind == "quality"]
    if not qualities:
        raise UsageError(f"{label} has no score where higher is better. Name one with --score: {', '.join(names)}.")
    return "quality" if "quality" in qualities else qualities[0]


def _recorder(
    collections: Sequence[Collection], ledger: Path | None, output: Path | None, backend: str
) -> Callable[[EngineFile, str, Collection, Scored], None]:
    """What to call with each engine, its score's name and what was scored: it records looks at BIQ2021's Test.

    Raises UsageError where that is due and there is no place for it, before anything is scored.
    """
    from declip_training.evaluation import ledger as looks

    if backend == "fake" or not any(map(looks.holds_test, collections)):  # what is made up says nothing of Test
        return lambda file, score, collection, scored: None
    path = ledger or looks.checkout_ledger() or (None if output is None else output / looks.FILE_NAME)
    if path is None:
        raise UsageError("BIQ2021's Test is looked at on the record. Name a folder with -o, or a file with --ledger.")
    looks.require_ledger(path)

    def record(file: EngineFile, score: str, collection: Collection, scored: Scored) -> None:
        row = looks.whole_test_row(collection, scored, file, score)
        if row is None:
            return
        made = scored.identity
        left_out = len(scored.errors) + len(collection.missing)
        note = (
            f"declip evaluate --split {collection.split}, near-duplicates of Train included, decode={made['decode']}, "
            f"views={made['views']}" + (f", {left_out} failed or missing" if left_out else "")
        )
        kept = scored.fresh == len(scored.errors)
        if kept and looks.is_recorded(path, row, note):  # a look again at the same numbers
            return
        looks.append_ledger(path, row, note)
        say(f"this look at BIQ2021's Test is on the record in {path}")

    return record


def _score(
    file: EngineFile,
    settings: Settings,
    collections: Sequence[Collection],
    cache: Path | None,
    record: Callable[[Collection, Scored], None],
) -> list[Scored]:
    """Scores of all collections; each is handed to ``record`` as soon as it is whole."""
    from declip_training.evaluation.scoring import EngineScores

    def make_scorer() -> Scorer:
        with loading():
            return settings.scorer(file)

    if settings.backend == "fake":
        say("these scores are made up by the fake backend, for testing pipelines only")
    done = []
    with EngineScores(file, settings, make_scorer) as engine:
        try:
            for each in collections:
                done.append(engine.score(each, cache, lambda total: progress_bar(total, shown=True)))
                record(each, done[-1])
        except KeyboardInterrupt:
            if cache is not None:
                say(f"what was scored is kept in {cache}; the same command goes on with the rest")
            raise
    return done


def _failures(collection: Collection, scored: Mapping[str, Scored]) -> list[Failure]:
    """What could not be scored; it is said, and left out for every engine."""
    rows = [
        Failure(collection.dataset.name, label, image, reason)
        for label, part in scored.items()
        for image, reason in part.errors.items()
    ]
    images = {row.image: row.error for row in rows}
    if images:
        for reason in list(images.values())[:_NAMED]:
            say(reason)
        total = count(len(collection.photos), "image")
        more = f"; {len(images) - _NAMED:,} are not named here" if len(images) > _NAMED else ""
        say(f"{collection.dataset.title}: {len(images):,} of {total} failed and are left out{more}")
    return rows


def _make_folder(folder: Path) -> None:
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file. Name a folder.")
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _needing_scipy() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise TrainingError(_EXTRA) from error
