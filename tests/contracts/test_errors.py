from __future__ import annotations

import inspect

import declip_sdk
from declip_runtime import errors


def _classes() -> dict[str, type[BaseException]]:
    return {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, BaseException)}


def test_every_error_is_exported_and_drawn_in_the_tree() -> None:
    drawn = errors.__doc__ or ""
    assert sorted(errors.__all__) == sorted(_classes())
    for name in errors.__all__:
        assert getattr(declip_sdk, name) is getattr(errors, name)
        assert name in drawn


def test_one_except_clause_catches_them_all() -> None:
    for name, cls in _classes().items():
        assert issubclass(cls, Warning if name.endswith("Warning") else errors.DeclipError)


def test_an_error_can_be_pickled() -> None:
    """Worker processes send errors back to their parent."""
    import pickle

    for cls in _classes().values():
        copy = pickle.loads(pickle.dumps(cls("what is wrong. How to fix it.")))
        assert type(copy) is cls
        assert str(copy) == "what is wrong. How to fix it."
