"""``declip i2t relabel --dry-run``: what it will take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from declip_sdk.cli.text import count

if TYPE_CHECKING:
    from declip_training.i2t.candidates import Candidate
    from declip_training.i2t.prompt import Prompt
    from declip_training.i2t.reply import Judge


def dry_run_report(
    candidates: list[Candidate],
    journal_path: Path,
    settings: dict[str, Any],
    judging: Judge,
    prompt: Prompt,
    attempts: int,
    workers: int,
    image_tokens: int | None,
    prices: tuple[float | None, float | None],
) -> None:
    """Print what asking for all that is missing will take, and the assumptions.

    ``settings`` are the journal's, with ``model`` None where it is not named. Raises TrainingError where the run
    would be refused for its journal.
    """
    from declip_training.i2t.estimate import estimate
    from declip_training.i2t.journal import Reply, read_journal, require_settings
    from declip_training.i2t.judging import pending, present

    head: Mapping[str, Any] | None = None
    replies: list[Reply] = []
    if journal_path.is_file():
        head, replies, *_ = read_journal(journal_path)
    if head is not None:
        require_settings(journal_path, head, {name: value for name, value in settings.items() if value is not None})
    by_id: dict[str, list[Reply]] = {}
    for reply in replies:
        by_id.setdefault(reply.id, []).append(reply)
    waiting = pending(candidates, present(candidates, by_id)[0], judging, attempts)
    found = estimate(
        waiting, replies, prompt, max_side=settings["max_side"], workers=workers, image_tokens=image_tokens
    )
    click.echo(f"candidates      {len(candidates):>14,}")
    click.echo(f"requests        {found.requests:>14,}")
    click.echo(f"tokens sent     {found.tokens_in:>14,}")
    click.echo(f"tokens written  {found.tokens_out:>14,}")
    click.echo(f"time            {_duration(found.seconds):>14}  with {count(workers, 'worker')}")
    if prices != (None, None):
        cost = found.cost(prices[0] or 0.0, prices[1] or 0.0)
        click.echo(f"cost            {cost:>14,.2f}  in the currency of the prices")
    for assumption in found.assumptions:
        click.echo(f"assumed: {assumption}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02} min" if minutes else f"{seconds:.0f} s"
