"""The ``declip`` command: knows its verbs by name and imports one only when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from declip_runtime.version import __version__

from . import signals

# verb -> what `declip --help` says of it; the verb lives in the module of its name, with _ for -, as `command`
VERBS = {
    "score": "Score photos: a table in the terminal, CSV or JSON for programs.",
    "info": "Show what an engine scores, how it was validated, and what runs it here.",
    "verify": "Check every hash in an engine file, weights included.",
    "unpack": "Turn an engine into a folder of ONNX files and its manifest.",
    "pack": "Turn such a folder back into an engine.",
    "build": "Build a TensorRT plan for this machine's GPU into an engine.",
    "doctor": "Show what this machine has, what runs here, and what would be faster.",
    "cache": "Show or clear the cache of compiled models.",
    "export": "Make an engine from an open_clip tower.",
    "generate": "Generate pictures: the look of one image, the content of another or of a text.",
    "export-generator": "Make an engine that generates, from a Stable Diffusion and an IP-Adapter.",
    "evaluate": "Compare scores with people's opinions on public data sets.",
    "evaluate-generation": "Compare DP-Adapter with the plain IP-Adapter, measured by models.",
    "benchmark": "Measure how fast this machine scores.",
    "i2t": "Build I&2T: images with a perceptual and a semantic description each.",
    "train": "Train projectors on an open_clip tower.",
    "coop": "Learn the words of a score's prompts from people's opinions.",
    "recipe": "Train a bundled engine again from public data.",
}


class LazyGroup(click.Group):
    """A group whose help needs none of its verbs to be imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order a newcomer needs them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        if cmd_name not in VERBS:
            return None
        command = import_module(f"declip_sdk.cli.{cmd_name.replace('-', '_')}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"the command of {cmd_name} is not a click command")
        signals.raise_exceptions()  # all is imported; what the verb has begun it can now clean up
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="declip %(version)s")
def declip() -> None:
    """Trustworthy quality scores for photos.

    \b
    declip score examples/photos              a table, best first
    declip score photos -o scores.csv         a file for the spreadsheet
    declip info                               what the bundled engine can do
    """
