"""What the recipe of the bundled engine is set to: schedules, what batches hold, and what choices go by."""

from __future__ import annotations

from declip_training.data.attributes import ALTERATIONS
from declip_training.data.batches import BatchShape
from declip_training.data.distortions import DISTORTIONS
from declip_training.pretrain import PretrainConfig

PRETRAIN = PretrainConfig(steps=3200, save_every=800)
# What scaling down hides best, compression and blown highlights, is shown most, and noise, which enlarging changes. Of
# the ladders nearly half are accidents. All are distorted in the file's pixels: noise added to what the tower sees
# teaches it nothing of enlarged noise.
TOWER_SHAPE = BatchShape(
    rated=(8, 8, 16),
    ladders=18,
    ladder_odds={
        "jpeg": 3.0, "sensor noise": 2.5, "overexposure": 3.0, "display noise": 1.5, "camera grain": 3.0,
        "colour fringes": 3.0, "banding": 2.0, "halos": 2.5, "smearing": 1.5, "underexposure": 1.5,
        "camera shake": 1.5, "interference": 2.0, "dropouts": 1.5, "jitter": 1.5, "accident": 28.0,
    },
    scaling=0.5,
    stored=frozenset({*DISTORTIONS, *ALTERATIONS}),
    faint=0.55,
    alterations=4,
)  # fmt: skip
OWN_OPINION = 0.3  # of a photo; the rest of what the tower learns is what the teacher says of it
STANDARD_PHOTOS = 256  # that the spread of the tower's features is measured on
# The tower's embedding tells compression better than its cosine with two sentences does: the projector's to learn.
BANK_SHAPE = BatchShape(
    ladders=17,
    distorted_captions=0.7,
    ladder_odds={
        "jpeg": 6.0, "sensor noise": 4.0, "overexposure": 3.0, "display noise": 2.0, "gaussian blur": 2.0,
        "camera grain": 3.0, "colour fringes": 6.0, "banding": 2.0, "halos": 5.0, "smearing": 2.0,
        "camera shake": 2.0, "interference": 2.0, "dropouts": 2.0, "jitter": 2.0, "accident": 16.0,
    },
    scaling=0.4,
    stored=frozenset({*DISTORTIONS, *ALTERATIONS}),
    faint=0.4,
    alterations=2,
)  # fmt: skip
BANK_PLAN = [(10**6 + i, 336) for i in range(240)]
"""(step, crop side) of each batch of the feature bank: steps that no pre-training reaches."""
LADDER_PHOTOS = 20
ATTRIBUTE_PHOTOS = 20  # from each bank of clean photos
LADDER_SEVERITIES = (0.15, 0.35, 0.55, 0.75, 0.95)
WORTHWHILE = 0.002  # less than this and prompts that a person can read are worth more
READABLE = "readable words"
SEVERAL = "five readable pairs"
COOP = "CoOp context"
