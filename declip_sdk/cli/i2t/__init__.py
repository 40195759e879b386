"""``declip i2t``: build I&2T, images with one perceptual and one semantic description each."""

from __future__ import annotations

import click

from .filtering import filter_
from .looking import check, show, stats
from .relabelling import relabel


@click.group("i2t")
def command() -> None:
    """Build data sets of images with a perceptual and a semantic description each (I&2T).

    \b
    declip i2t filter     keep human descriptions that are rich in perceptual words
    declip i2t relabel    let a vision-language model write both descriptions from them
    declip i2t stats      count what came out
    declip i2t check      verify ids, texts, images and hashes
    declip i2t show       make an HTML page to look at
    """


for verb in (filter_, relabel, stats, check, show):
    command.add_command(verb)
