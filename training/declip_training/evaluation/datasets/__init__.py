"""Public data sets of rated photos, each read in its official layout: which there are, and how to read one.

``DATASETS`` maps the name that ``declip evaluate --data NAME=PATH`` takes to the description; ``collect`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping

from .artistic import APDD, APDDV2, BAID
from .authentic import BIQ2021, KONIQ, LIVEC, SPAQ
from .base import ALL, SPLITS, TEST, Collection, Dataset, Photo, Row, collect, collect_parts
from .generated import AGIQA, RICHHF, SAC
from .natural import AADB, AVA, EVA, PARA
from .synthetic import CSIQ, KADID, LIVE, LIVE_REALIGNED, TID2013

__all__ = ["ALL", "DATASETS", "SPLITS", "TEST", "Collection", "Dataset", "Photo", "Row", "collect", "collect_parts"]

_IN_THE_ORDER_OF_THE_PAPER = (
    LIVE, CSIQ, TID2013, KADID, LIVEC, KONIQ, SPAQ, AGIQA, AVA, AADB, PARA, EVA, BAID, APDD, RICHHF, SAC,
    LIVE_REALIGNED, APDDV2, BIQ2021,
)  # fmt: skip

DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _IN_THE_ORDER_OF_THE_PAPER}
