"""One HTML page to look at: images with both descriptions. Self-contained, without scripts, everything escaped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from declip_runtime.errors import ImageError

from .pictures import data_url
from .records import Record, image_path
from .reply import misleading

THUMBNAIL = 320

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
article {{ display: grid; grid-template-columns: 320px 1fr; gap: 1.5rem; padding: 1.2rem 0; }}
article {{ border-top: 1px solid #bbb; }}
img, .missing {{ max-width: 320px; }}
.missing {{ color: #b00020; }}
dl {{ margin: 0; overflow-wrap: anywhere; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0 0 .7rem; white-space: pre-line; }}
.aside {{ color: #666; font-size: .85em; }}
@media (max-width: 45rem) {{ article {{ grid-template-columns: 1fr; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
"""
_FOOT = "</body>\n</html>\n"


def sample(records: Sequence[Record], number: int, seed: int) -> list[Record]:
    """``number`` records (or all) drawn at random by ``seed``, in the table's order."""
    chosen = random.Random(seed).sample(range(len(records)), min(number, len(records)))
    return [records[i] for i in sorted(chosen)]


def page(
    table: Path, records: Iterable[Record], subtitle: str, unreadable: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """The page in pieces, one a record. ``unreadable`` is told of each image that cannot be opened, and why."""
    yield _HEAD.format(title=_safe(f"I&2T: {table.name}"), subtitle=_safe(subtitle))
    for record in records:
        try:
            url = data_url(image_path(table, record.image), THUMBNAIL)
            picture = f'<img src="{url}" alt="{_safe(record.semantic)}">'
        except ImageError as error:
            unreadable(str(error))
            picture = f'<p class="missing">{_safe(str(error))}</p>'
        yield _ARTICLE.format(
            picture=picture,
            perceptual=_safe(record.perceptual),
            semantic=_safe(record.semantic),
            source_text=_safe(record.source_text),
            about=_safe(" · ".join(filter(None, (record.id, record.source, record.image_type, record.image)))),
        )
    yield _FOOT


_ARTICLE = """<article>
<div>{picture}</div>
<dl>
<dt>Perceptual</dt><dd>{perceptual}</dd>
<dt>Semantic</dt><dd>{semantic}</dd>
<dt class="aside">Human</dt><dd class="aside">{source_text}</dd>
<dt class="aside">Record</dt><dd class="aside">{about}</dd>
</dl>
</article>
"""


def _safe(text: str) -> str:
    """Escaped for HTML, without what is no text there: control characters, halves of characters, turned directions."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    plain = "".join(c if c in "\n\t" or not misleading(c) else "\ufffd" for c in lines)
    return escape(plain.encode("utf-8", "replace").decode())
