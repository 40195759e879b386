"""The folder of one training run: what it was told, how far it is, and what it made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError
from declip_training.files import differences, read_json, replacing, write_json, writing


class RunFolder:
    """``run.json`` says what decides the weights, ``state.safetensors`` is gone on from, ``best.safetensors`` and
    ``last.safetensors`` are for ``declip export``, ``log.jsonl`` has a line for every so many steps, and
    ``summary.json`` is there when all is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state, self.best, self.last = (path / f"{n}.safetensors" for n in ("state", "best", "last"))
        self.log_file, self.summary_file = path / "log.jsonl", path / "summary.json"
        self._stated = path / "run.json"

    def agree(self, facts: dict[str, Any]) -> None:
        """Write down ``facts``, or check that those written down are the same.

        Raises TrainingError, naming what differs, where this folder belongs to another run or holds other files.
        """
        known: dict[str, Any] = read_json(self._stated) if self._stated.is_file() else {}
        made = [p.name for p in (self.state, self.best, self.last, self.log_file) if p.exists()]
        if made and not known:
            raise TrainingError(f"{self.path} holds {', '.join(made)} but no run.json. Name another folder with -o.")
        both = [name for name in facts if name in known]
        unlike = differences({name: known[name] for name in both}, {name: facts[name] for name in both})
        if unlike and made:  # before the first step nothing is lost by changing one's mind
            raise TrainingError(
                f"{self.path} belongs to another run: {unlike}. Give the same options and data, or another folder "
                "with -o."
            )
        if unlike or len(both) < len(facts):
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._stated, {**known, **facts})

    def require_split(self, held_out_sha256: str) -> None:
        """Write down which records are held out. Raises TrainingError for a run that was begun with others."""
        known: dict[str, Any] = read_json(self._stated)
        if self.state.is_file() and known.get("held_out_sha256") != held_out_sha256:
            raise TrainingError(
                f"{self.path} was begun with other records held out, as by an older version. Give another folder with "
                "-o."
            )
        write_json(self._stated, {**known, "held_out_sha256": held_out_sha256})

    def require_made(self) -> None:
        """Raise TrainingError where a finished run lacks its best checkpoint."""
        if not self.best.is_file():
            raise TrainingError(
                f"the run in {self.path} is finished, but {self.best.name} is gone. Put it back; or remove "
                f"{self.summary_file.name} and {self.state.name} to train again."
            )

    def summary(self) -> dict[str, Any] | None:
        """What the finished run said at its end; None while it is not finished."""
        return read_json(self.summary_file) if self.summary_file.is_file() else None

    def log(self, line: dict[str, Any]) -> None:
        """Append one JSON line."""
        with writing(self.log_file), self.log_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the log's lines of steps that a killed run did and this one will do again."""
        if not self.log_file.is_file():
            return
        kept = [line for line, values in self._lines() if values["step"] <= step]
        with replacing(self.log_file) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def logged(self, step: int, names: Sequence[str]) -> dict[str, float]:
        """The named values of ``step``, as far as the log has them."""
        values: dict[str, float] = {}
        if self.log_file.is_file():
            for _, line in self._lines():
                values |= {name: line[name] for name in names if line["step"] == step and name in line}
        return values

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in self.log_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
                values["step"] = int(values["step"])
            except (ValueError, KeyError, TypeError):  # cut off by the kill
                continue
            yield line + "\n", values
