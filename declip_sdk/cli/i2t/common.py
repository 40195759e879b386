"""What the verbs of ``declip i2t`` share: the options of judging, a progress bar, how problems are told."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from declip_runtime.errors import UsageError
from declip_sdk.cli.output import require_place
from declip_sdk.cli.say import say

if TYPE_CHECKING:
    from declip_training.i2t.decoupling import Vocabularies
    from declip_training.i2t.reply import Judge
    from declip_training.i2t.tally import Tally

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SECONDS_BETWEEN_LINES = 30.0

FILE = click.Path(path_type=Path)


class FiniteRange(click.FloatRange):
    """Numbers of a range; for click NaN belongs to each, and infinity to an open one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that a text names."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def vocabulary_option(command: _Command) -> _Command:
    """``--vocabulary``."""
    help_ = "Perceptual vocabulary of your own, a term a line; default is the bundled one."
    return click.option("--vocabulary", type=FILE, metavar="FILE", help=help_)(command)


def judge_options(command: _Command) -> _Command:
    """``--vocabulary``, ``--decoupling``, ``--max-words``."""
    for option in (
        click.option(
            "--max-words",
            type=click.IntRange(1),
            default=60,
            show_default=True,
            help="Longest text; CLIP reads no more.",
        ),
        click.option(
            "--decoupling",
            "limits",
            multiple=True,
            metavar="NAME=SHARE",
            help="A limit of the check that the two texts are apart, see docs/i2t.md. Repeatable.",
        ),
    ):
        command = option(command)
    return vocabulary_option(command)


def vocabularies(vocabulary: Path | None) -> Vocabularies:
    """The bundled vocabularies, or with the user's perceptual one."""
    from declip_training.i2t.decoupling import Vocabularies
    from declip_training.i2t.vocabulary import Vocabulary

    return Vocabularies.default(None if vocabulary is None else Vocabulary.read(vocabulary))


def judge(vocabulary: Path | None, limits: tuple[str, ...], max_words: int) -> Judge:
    """What the options of ``judge_options`` say."""
    from declip_training.i2t.decoupling import Limits
    from declip_training.i2t.reply import Judge

    names = {name: type(value) for name, value in vars(Limits()).items()}
    given: dict[str, Any] = {}
    for text in limits:
        name, _, number = text.partition("=")
        if name not in names:
            raise UsageError(f"--decoupling {text}: there is no limit {name!r}. Use one of: {', '.join(names)}.")
        try:
            given[name] = names[name](number)
        except ValueError:
            raise UsageError(f"--decoupling {text}: give a number, as in --decoupling {name}=0.3.") from None
    return Judge(vocabularies(vocabulary), Limits(**given), max_words)


def require_output(output: Path, *inputs: Path | None) -> None:
    """Raise UsageError or OutputError now where ``output`` cannot be written, or is one of the ``inputs``."""
    if output.exists() and any(path is not None and path.exists() and output.samefile(path) for path in inputs):
        raise UsageError(f"{output} is read, so it will not be overwritten. Name another file.")
    folder = output.resolve().parent
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot write {output}: {folder} is a file, no folder. Name another place.")
    if output.is_symlink() and not folder.exists():
        raise UsageError(f"cannot write {output}: it is a link into {folder}, which does not exist. Remove the link.")
    require_place(output)


def tell(tally: Tally, of: str) -> None:
    """Say every kind of problem with its first examples."""
    for line in tally.lines():
        say(f"{of}: {line}")


@contextmanager
def advancing(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show how far the work is: a bar in a terminal, else a line every half minute. Yields what to call after each."""
    if sys.stderr.isatty():
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda: progress.advance(task)
        return
    done, told = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            say(f"{what}: {done:,}" + ("" if total is None else f" of {total:,}"))

    yield advance
