"""``declip i2t``: build I&2T, images with one perceptual and one semantic description each."""

from __future__ import annotations

import click

from .filtering import filter_
from .looking import check, show, stats
from .relabelling import relabel


class _InOrder(click.Group):
    """A group whose help lists its verbs in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)


@click.group("i2t", cls=_InOrder)
def command() -> None:
    """Build data sets of images with a perceptual and a semantic description each (I&2T)."""


for verb in (filter_, relabel, show, check, stats):
    command.add_command(verb)
