from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from declip_sdk import Scorer

from .command import TINY


def test_scores_become_a_data_frame(photos: Path) -> None:
    paths = [photos / "a.jpg", photos / "broken.jpg"]
    with Scorer(TINY, backend="fake") as scorer:
        scores = scorer.score(paths, on_error="record")
        frame = scores.to_pandas()
        assert list(frame.columns) == ["image", *scorer.names, "error"]
        assert list(frame["image"]) == [str(path) for path in paths]
        for name in scorer.names:
            assert frame[name].dtype == np.float32
            np.testing.assert_array_equal(frame[name], scores[name])
        assert frame["error"][0] is None or pd.isna(frame["error"][0])
        assert frame["error"][1].startswith("ImageDecodeError: ")


def test_paths_may_come_from_a_data_frame(photos: Path) -> None:
    frame = pd.DataFrame({"path": [str(photos / "a.jpg"), str(photos / "b.PNG")]})
    with Scorer(TINY, backend="fake") as scorer:
        expected = scorer.score(list(frame["path"]))["quality"]
        np.testing.assert_array_equal(scorer.score(frame["path"])["quality"], expected)
        np.testing.assert_array_equal(scorer.score(frame["path"].to_numpy(object))["quality"], expected)
