"""Which records of a report a run was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from declip_training.i2t.records import Record

from .report import Measured
from .schedule import held_out, together


def count_trained_on(known: Sequence[Record], read: Sequence[str | None], validation: float, measured: Measured) -> int:
    """How many of the records that were measured are among those that a run was trained on.

    ``known`` are the records of the run, ``read`` the SHA-256 of their images (empty: not known, None: left out, as
    there was no picture), ``validation`` the share that was held out. A record is recognised by what its image holds,
    whatever its id; and by its id, but where both images are known and are others, only with one of its texts: ids that
    are running numbers are those of many tables.
    """
    used = [
        (record, record.image_sha256.lower() if sha256 == "" else sha256)
        for record, sha256 in zip(known, read, strict=True)
        if sha256 is not None
    ]
    groups = together([record.id for record, _ in used], [sha256 for _, sha256 in used])
    trained = [one for one, validates in zip(used, held_out(groups, validation), strict=True) if not validates]
    by_id = {record.id: (record, sha256) for record, sha256 in trained}
    images = {sha256 for _, sha256 in trained} - {""}

    def is_trained_on(record: Record, sha256: str) -> bool:
        if sha256 in images or record.id not in by_id:
            return sha256 in images
        other, its_image = by_id[record.id]
        same_text = record.perceptual == other.perceptual or record.semantic == other.semantic
        return same_text or not its_image

    return sum(map(is_trained_on, measured.records, measured.sha256))
