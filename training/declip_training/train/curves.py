"""TensorBoard's event files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError
from declip_training.files import writing


class Curves:
    """An event file in ``folder``, begun with the first values. Raises TrainingError where TensorBoard is missing.

    torch's SummaryWriter is not used: its thread prints a traceback where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
            from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
        except ImportError as error:
            raise TrainingError("--tensorboard needs TensorBoard. Run: pip install tensorboard") from error
        self._event, self._writer = Event, RecordWriter
        # files of a folder are read in the order of their names
        self._path = folder / f"events.out.tfevents.{time.time_ns():020}.{os.getpid()}"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one value to each curve; the first step of a file hides what earlier files have from there on."""
        events: list[dict[str, Any]] = [
            {"step": step, "summary": {"value": [{"tag": name, "simple_value": v} for name, v in values.items()]}}
        ]
        if not self._path.exists():
            events = [{"file_version": "brain.Event:2"}, {"step": step, "session_log": {"status": "START"}}, *events]
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                for event in events:
                    self._writer(stream).write(self._event(wall_time=time.time(), **event).SerializeToString())
