from __future__ import annotations

import declip_sdk
from declip_runtime import errors


def test_the_public_names_are_these() -> None:
    public = ["Score", "Scorer", "Scores", "__version__", *errors.__all__]
    assert sorted(declip_sdk.__all__) == sorted(public)
    assert all(getattr(declip_sdk, name) is not None for name in public)
    assert set(public) <= set(dir(declip_sdk))
    star: dict[str, object] = {}
    exec("from declip_sdk import *", star)
    assert set(public) <= set(star)
