"""The prompt of relabelling: a text file that ships with the project and that a user may replace."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError

from .candidates import hash_of
from .reply import after_thought

PLACE = "{text}"
_SENT_BACK = 4000  # characters of a rejected reply: they are paid for again


@dataclass(frozen=True)
class Prompt:
    """What a model is asked of each image. ``template`` holds ``{text}`` once, where the human description goes."""

    template: str

    def __post_init__(self) -> None:
        if self.template.count(PLACE) != 1:
            raise TrainingError(f"the prompt must hold {PLACE} once, where the human text goes. Put it in.")

    @classmethod
    def read(cls, path: Path | None = None) -> Prompt:
        """The prompt in ``path``, or the bundled one. Raises TrainingError for a file that cannot be used."""
        if path is None:
            return cls(resources.files(__package__).joinpath("prompt.txt").read_text(encoding="utf-8"))
        try:
            return cls(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"the prompt {path} cannot be read: {error}. Give a text file in UTF-8.") from error

    @property
    def sha256(self) -> str:
        """Identifies the template."""
        return hash_of(self.template)

    def text(self, source_text: str) -> str:
        """The prompt for one human description."""
        return self.template.replace(PLACE, source_text)

    def messages(self, source_text: str, image: str, rejected: tuple[str, str] | None = None) -> list[dict[str, Any]]:
        """A chat for the image, a data URL. ``rejected``: the last reply, and why it was not accepted.

        That reply is sent back without the thoughts of the model, and cut where it runs on.

        Halves of characters become ``?``: a reply may hold them, but no request can.
        """
        question: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": self.text(source_text)},
        ]
        chat: list[dict[str, Any]] = [{"role": "user", "content": question}]
        if rejected is not None:
            shown = after_thought(rejected[0])[:_SENT_BACK], rejected[1]
            reply, reason = (part.encode("utf-8", "replace").decode() for part in shown)
            again = f"This cannot be used: {reason}. Answer again with one JSON object that keeps to all the rules."
            chat += [{"role": "assistant", "content": reply or "(nothing)"}, {"role": "user", "content": again}]
        return chat
