from __future__ import annotations

import errno
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import declip_sdk
from declip_runtime import container, errors
from declip_runtime.engine_file import EngineFile
from declip_runtime.engine_writer import pack, write_engine
from declip_runtime.manifest import Manifest
from runtime import tiny_engine


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


# --- real messages: what is wrong, with which file, and what to do

FIX = re.compile(
    r"\b(Add|Check|Choose|Copy|Create|Export|Give|Make|Name|Open|Put|Run|Save|Unzip|Use|free|shows the form)\b"
)


def _with_manifest(change: Callable[[dict[str, Any]], object], path: Path) -> Path:
    """An engine whose manifest was changed by somebody who kept the checksums right."""
    engine = tiny_engine.write(path)
    data = engine.manifest.to_dict()
    changed = change(data)
    text = json.dumps(data if changed is None else changed).encode()
    contents = [(name, engine.read(name)) for name in engine.manifest.entries]
    with path.open("wb") as file:
        members = [container.append(file, n, [c], lambda _: None) for n, c in (*contents, ("manifest.json", text))]
        container.finish(file, members)
    return path


def _open_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda path: EngineFile.open(_with_manifest(change, path))


def _pack_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def act(path: Path) -> object:
        tiny_engine.write(path.with_name("good.engine")).unpack(path)
        data = json.loads((path / "manifest.json").read_text())
        changed = change(data)
        (path / "manifest.json").write_text(json.dumps(data if changed is None else changed))
        return pack(path, path.with_name("packed.engine"))

    return act


def _not_found(path: Path) -> object:
    return EngineFile.open(path)


def _folder(path: Path) -> object:
    path.mkdir()
    return EngineFile.open(path)


def _pipe(path: Path) -> object:
    os.mkfifo(path)
    return EngineFile.open(path)


def _circle(path: Path) -> object:
    path.symlink_to(path)
    return EngineFile.open(path)


def _gone_after_opening(path: Path) -> object:
    engine = tiny_engine.write(path)
    path.unlink()
    return engine.read("graphs/fp32.onnx")


def _content(data: bytes) -> Callable[[Path], object]:
    def act(path: Path) -> object:
        path.write_bytes(data)
        return EngineFile.open(path)

    return act


def _truncated(path: Path) -> object:
    data = tiny_engine.write(path).path.read_bytes()
    return _content(data[: len(data) // 2])(path)


def _flipped(path: Path) -> None:
    engine = tiny_engine.write(path)
    data = bytearray(path.read_bytes())
    data[engine.offset("weights.bin")] ^= 1
    path.write_bytes(data)
    EngineFile.open(path).verify()


def _tensor_outside(path: Path) -> object:
    entries = {"graphs/fp32.onnx": tiny_engine.graph(shift=8), "weights.bin": tiny_engine.Weights.random().to_bytes()}
    return write_engine(path, tiny_engine.MANIFEST, entries).graph("fp32", "x")


def _no_entry(path: Path) -> object:
    return tiny_engine.write(path).read("graphs/fp16.onnx")


def _written_to_a_folder(path: Path) -> object:
    path.mkdir()
    return tiny_engine.write(path)


def _written_to_no_folder(path: Path) -> object:
    return tiny_engine.write(path / "x.engine")


def _packed_from_nothing(path: Path) -> object:
    return pack(path, path.with_name("x.engine"))


def _unpacked_onto_something(path: Path) -> object:
    path.write_bytes(b"")
    return tiny_engine.write(path.with_name("good.engine")).unpack(path)


def _another_format(_data: dict[str, Any]) -> object:
    return {"format": "something else"}


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "not an object": lambda _data: [],
    "another format": _another_format,
    "no schema": lambda data: data.pop("schema") and None,
    "newer schema": lambda data: data.update(schema=99),
    "newer preprocessing": lambda data: data["preprocess"].update(version=99),
    "a schema before the first": lambda data: data.update(schema=0),
    "no scores": lambda data: data.pop("scores") and None,
    "size out of range": lambda data: data["preprocess"].update(size=1),
    "a number as text": lambda data: data.update(logit_scale="high"),
    "a text as number": lambda data: data["scores"][0].update(description=5),
    "a number without end": lambda data: data.update(logit_scale=10**400),
    "a reserved name": lambda data: data["scores"][0].update(name="errors"),
    "another id": lambda data: data.update(engine_id="0" * 64),
    "entries without a hash": lambda data: data["entries"]["weights.bin"].update(sha256="?"),
}
MADE_ANEW = ("another id", "entries without a hash")  # by pack
CASES: dict[str, Callable[[Path], object]] = {
    "not found": _not_found,
    "a folder": _folder,
    "a pipe": _pipe,
    "a circle": _circle,
    "gone after opening": _gone_after_opening,
    "empty": _content(b""),
    "text": _content(b"hello"),
    "an archive": _content(b"PK\x03\x04" + b"word/document.xml" * 9),
    "a plan": _content(b"ftrt" + bytes(99)),
    "truncated": _truncated,
    "flipped": _flipped,
    "a tensor outside": _tensor_outside,
    "no entry": _no_entry,
    "written to a folder": _written_to_a_folder,
    "written to no folder": _written_to_no_folder,
    "packed from nothing": _packed_from_nothing,
    "unpacked onto something": _unpacked_onto_something,
    **{f"manifest: {name}": _open_with(change) for name, change in CHANGES.items()},
    **{f"folder: {name}": _pack_with(change) for name, change in CHANGES.items() if name not in MADE_ANEW},
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and links of POSIX")
@pytest.mark.parametrize("case", list(CASES))
def test_a_message_names_the_file_and_the_fix(case: str, tmp_path: Path) -> None:
    path = tmp_path / "the-file.engine"
    with pytest.raises((errors.EngineError, errors.UsageError)) as caught:
        CASES[case](path)
    message = str(caught.value)
    assert "the-file.engine" in message
    assert FIX.search(message), message


def test_a_file_that_the_system_does_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_engine.write(tmp_path / "the-file.engine").path

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(errors.EngineError, match=r"the-file\.engine cannot be read: Permission denied\. Check"):
        EngineFile.open(path)


def test_a_manifest_without_a_file_still_names_the_fix() -> None:
    newer = tiny_engine.MANIFEST.to_json().replace('"schema": 1', '"schema": 99')
    for text in ("", "[]", "{}", "[" * 100_000, newer):
        with pytest.raises(errors.EngineError) as caught:
            Manifest.from_json(text)
        assert FIX.search(str(caught.value))
