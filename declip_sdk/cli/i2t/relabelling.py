"""``declip i2t relabel``: from candidates to records, through a chat-completions endpoint."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from declip_runtime.errors import TrainingError, UsageError
from declip_sdk.cli.heif import register_heif
from declip_sdk.cli.output import open_output, writing
from declip_sdk.cli.say import say
from declip_sdk.cli.text import count, visible

from .common import FILE, FiniteRange, advancing, judge, judge_options, require_output
from .estimating import dry_run_report

if TYPE_CHECKING:
    from declip_training.i2t.endpoint import ResponseFormat
    from declip_training.i2t.relabel import Outcome, SetAside

_REASONS = 10
_OURS = {"messages", "model", "n", "stream"}
"""Parts of a request that the journal names, or without which its answer could not be read."""


@click.command("relabel", short_help="Have a model write both descriptions.")
@click.argument("candidates_file", metavar="CANDIDATES", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The I&2T table, a .parquet file.")
@click.option("--base-url", metavar="URL", help="Endpoint, as in http://localhost:8000/v1.")
@click.option("--model", metavar="NAME", help="The model, as the endpoint names it.")
@click.option("--key-variable", metavar="NAME", help="Environment variable that holds the key; default: none is sent.")
@click.option("--prompt", "prompt_file", type=FILE, metavar="FILE", help="Prompt of your own, with {text} once in it.")
@click.option("--workers", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option("--attempts", type=click.IntRange(1), default=3, show_default=True, help="Replies tried per image.")
@click.option("--max-side", type=click.IntRange(16), default=768, show_default=True, help="Pixels of the image sent.")
@click.option(
    "--timeout",
    type=FiniteRange(0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="S",
    help="Seconds without a byte, that is for most servers until the whole reply is there.",
)
@click.option("--retries", type=click.IntRange(0), default=6, show_default=True, help="After failures of the endpoint.")
@click.option(
    "--backoff",
    type=FiniteRange(0),
    default=1.0,
    show_default=True,
    metavar="S",
    help="First pause; it doubles, unless the endpoint says how long to wait.",
)
@click.option(
    "--response-format",
    type=click.Choice(["schema", "object", "none"]),
    default="schema",
    show_default=True,
    help="JSON schema, JSON mode, or nothing, for endpoints that know neither.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Limit of a reply.")
@click.option("--extra", metavar="JSON", help="More for the request, as in '{\"temperature\": 0.2}'.")
@judge_options
@click.option("--journal", "journal_file", type=FILE, metavar="FILE", help="Default: OUTPUT as .journal.jsonl")
@click.option("--rejects", "rejects_file", type=FILE, metavar="FILE", help="Default: OUTPUT as .rejects.jsonl")
@click.option("--first", type=click.IntRange(1), metavar="N", help="Ask only for the first N, to try it out.")
@click.option("--dry-run", is_flag=True, help="Ask nothing; estimate requests, tokens and time.")
@click.option("--image-tokens", type=click.IntRange(0), metavar="N", help="For --dry-run: tokens an image costs.")
@click.option("--price-in", type=FiniteRange(0), metavar="P", help="For --dry-run: of a million tokens sent.")
@click.option("--price-out", type=FiniteRange(0), metavar="P", help="For --dry-run: of a million tokens written.")
@click.pass_context
def relabel(
    context: click.Context,
    candidates_file: Path,
    output: Path,
    base_url: str | None,
    model: str | None,
    key_variable: str | None,
    prompt_file: Path | None,
    workers: int,
    attempts: int,
    max_side: int,
    timeout: float,
    retries: int,
    backoff: float,
    response_format: ResponseFormat,
    max_tokens: int,
    extra: str | None,
    vocabulary: Path | None,
    limits: tuple[str, ...],
    max_words: int,
    journal_file: Path | None,
    rejects_file: Path | None,
    first: int | None,
    dry_run: bool,
    image_tokens: int | None,
    price_in: float | None,
    price_out: float | None,
) -> None:
    """Let a vision-language model write a perceptual and a semantic description of every candidate.

    \b
    declip i2t relabel candidates.jsonl -o i2t.parquet --base-url http://localhost:8000/v1 --model Qwen2.5-VL-7B

    The endpoint speaks OpenAI's chat completions with images: vLLM, llama.cpp, Ollama, hosted ones. Every reply is in
    the journal before it counts: after a kill the same command asks only for what is missing. Replies that are no
    JSON, in another language, or whose texts are not decoupled are asked again, then set aside with the reason.

    Exit codes: 0 every candidate has its descriptions or was set aside, 1 some were not answered (run it again) or none
    has descriptions, so that there is no table, 2 wrong use or an endpoint that fails.
    """
    from declip_training.i2t.candidates import read_candidates
    from declip_training.i2t.endpoint import Endpoint, EndpointError, EndpointOptions
    from declip_training.i2t.journal import Journal
    from declip_training.i2t.judging import first_or_settled, present
    from declip_training.i2t.prompt import Prompt
    from declip_training.i2t.records import write_records
    from declip_training.i2t.relabel import RelabelOptions, alike, records, require_utf8
    from declip_training.i2t.relabel import relabel as run

    register_heif()
    if output.suffix.lower() != ".parquet":
        raise UsageError(f"{output} is no name for the table. Let it end in .parquet.")
    journal_path = journal_file or output.with_suffix(".journal.jsonl")
    rejects_path = rejects_file or output.with_suffix(".rejects.jsonl")
    for place in (output, journal_path, rejects_path):
        require_output(place, candidates_file, prompt_file, vocabulary)
        if place.exists() and not place.is_file():
            raise UsageError(f"{place} is a device or a pipe, which keeps nothing that was paid for. Name a file.")
    if len({place.resolve() for place in (output, journal_path, rejects_path)}) < 3:
        raise UsageError("table, journal and rejects are three files. Name others with -o, --journal, --rejects.")
    judging = judge(vocabulary, limits, max_words)
    prompt = Prompt.read(prompt_file)
    candidates = read_candidates(candidates_file)
    require_utf8(output, candidates)
    settings = {"model": model, "prompt_sha256": prompt.sha256, "max_side": max_side}
    if dry_run:
        prices = (price_in, price_out)
        dry_run_report(
            candidates[:first], journal_path, settings, judging, prompt, attempts, workers, image_tokens, prices
        )
        return
    if base_url is None or model is None:
        raise UsageError("no endpoint. Name it with --base-url and --model, or estimate with --dry-run.")
    stop = threading.Event()
    endpoint = Endpoint(
        EndpointOptions(
            base_url=base_url,
            model=model,
            key=_key(key_variable),
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            response_format=response_format,
            max_tokens=max_tokens,
            extra=_extra(extra),
        ),
        stop,
        say,
    )
    with writing(journal_path), Journal(journal_path, settings) as journal:
        if journal.cut:
            say(f"the last line of {journal_path} was cut off; one reply is asked for again")
        if held := sum(len(replies) for replies in journal.replies.values()):
            say(f"{_replies(held)} in {journal_path} from before")
        with advancing("looking for replaced images", len(journal.replies)) as advance:
            journal.replies, replaced = present(candidates, journal.replies, advance)
        if replaced:
            say(f"{count(replaced, 'image')} replaced since they were described; they are asked about again")
        candidates = first_or_settled(candidates, first, journal.replies, judging, attempts)
        with _told(EndpointError, journal_path), advancing("relabelling", len(candidates)) as advance:
            outcome = run(
                candidates,
                endpoint,
                stop,
                prompt,
                judging,
                journal,
                RelabelOptions(max_side, attempts, workers),
                advance=advance,
                interrupted=lambda: say("waiting for requests under way; once more leaves at once, without them"),
            )
    waits: Counter[str] = Counter()
    for reason, number in endpoint.waits.items():
        waits[alike(reason)] += number
    _say_most("asked again", "after: ", waits)
    if outcome.stopped is not None:
        raise TrainingError(
            f"{base_url} fails again and again: {outcome.stopped}. What was answered is in {journal_path}: mend "
            "the endpoint, or choose other options (such as --response-format none), and run the same command again."
        )
    made = records(output, candidates, outcome)
    if made:
        provenance = {"candidates": visible(candidates_file.name), **{k: str(v) for k, v in settings.items()}}
        provenance["vocabulary_sha256"] = judging.vocabularies.perceptual.sha256
        with writing(output):
            write_records(output, made, provenance)
    _write_rejects(rejects_path, outcome)
    _report(outcome, len(candidates), output, rejects_path)
    context.exit(1 if outcome.unanswered() or not made else 0)


def _key(variable: str | None) -> str | None:
    """Nothing is sent unless its variable is named: a key for one endpoint is no other one's business."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()  # a key read from a file often ends with a line end
    if not key:
        raise UsageError(f"--key-variable {variable}: there is no such environment variable, or it is empty. Set it.")
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"--key-variable {variable}: its value is no key, it holds more than plain characters. Correct it."
        )
    return key


def _extra(text: str | None) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--extra is no JSON: {error}. Quote it for the shell: '{{\"temperature\": 0.2}}'.") from error
    try:
        json.dumps(extra, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--extra cannot be sent: {error}. Leave out NaN and halves of characters.") from error
    if not isinstance(extra, dict):
        raise UsageError("--extra is no JSON object. Write it as in '{\"temperature\": 0.2}'.")
    if ours := sorted(extra.keys() & _OURS):
        raise UsageError(f"--extra sets {ours[0]!r}, which is ours to set. Leave it out.")
    return extra


def _write_rejects(path: Path, outcome: Outcome) -> None:
    """Every candidate without descriptions; no file where there is none."""
    if not outcome.set_aside:
        with writing(path):
            path.unlink(missing_ok=True)
        return
    with open_output(path) as stream:
        for one in sorted(outcome.set_aside, key=lambda one: one.candidate.id):
            stream.write(json.dumps(_reject(one)).encode("ascii") + b"\n")


def _reject(one: SetAside) -> dict[str, Any]:
    return {
        "id": one.candidate.id,
        "image": one.candidate.image,
        "source": one.candidate.source,
        "reason": one.reason,
        "final": one.final,
        "attempts": one.attempts,
        "reply": one.reply,
    }


@contextmanager
def _told(failure: type[TrainingError], journal: Path) -> Iterator[None]:
    """An error of the endpoint also says where the replies are."""
    try:
        yield
    except failure as error:
        raise TrainingError(f"{error} What was answered is in {journal}: the same command goes on with it.") from error


def _say_most(what: str, before: str, reasons: Counter[str]) -> None:
    for reason, number in reasons.most_common(_REASONS):
        say(f"{what} {number:,} x{'' if before else ':'} {before}{reason}")
    if rest := max(0, len(reasons) - _REASONS):
        left = reasons.total() - sum(number for _, number in reasons.most_common(_REASONS))
        say(f"{what} {left:,} x for {count(rest, 'other reason')}")


def _replies(number: int) -> str:
    return f"{number:,} {'reply' if number == 1 else 'replies'}"


def _report(outcome: Outcome, candidates: int, output: Path, rejects_path: Path) -> None:
    _say_most("set aside", "", outcome.reasons())
    if outcome.asked:
        tokens = f", {outcome.tokens_in:,} tokens sent, {outcome.tokens_out:,} written" if outcome.tokens_in else ""
        say(f"{_replies(outcome.asked)} in this run{tokens}")
    if outcome.set_aside:
        again = f", {len(outcome.unanswered()):,} of them to be asked again by the same command" * bool(
            outcome.unanswered()
        )
        say(f"{len(outcome.set_aside):,} of {candidates:,} set aside in {rejects_path}{again}")
    if outcome.accepted:
        say(f"{count(len(outcome.accepted), 'record')} in {output}")
    else:
        say(f"no reply was accepted, so {output} was not written")
