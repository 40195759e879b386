from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from declip_runtime.errors import TrainingError
from declip_training.i2t.journal import Journal, Reply, read_journal

SETTINGS = {"model": "m", "prompt_sha256": "abc", "max_side": 768}


def reply(name: str, text: str = "text \u2028 ü") -> Reply:
    return Reply(name, text, "stop", "00", 1, 2, 0.5)


def test_replies_are_there_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", SETTINGS) as journal:
        for one in (reply("a"), reply("b"), reply("a", "second\n")):
            journal.append(one)
            # what append has written is there for whoever comes after a kill
            assert read_journal(tmp_path / "j")[1][-1] == one
    with Journal(tmp_path / "j", SETTINGS) as journal:
        assert journal.replies == {"a": [reply("a"), reply("a", "second\n")], "b": [reply("b")]}
        assert not journal.cut


def test_a_line_cut_by_a_kill_is_removed_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        journal.append(reply("a"))
        first = path.stat().st_size
        journal.append(reply("b"))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, SETTINGS) as journal:
            assert journal.cut == (whole[:cut][-1:] not in (b"", b"\n"))
            assert set(journal.replies) == ({"a"} if cut >= first else set())
            journal.append(reply("c"))
        with Journal(path, SETTINGS) as journal:
            assert not journal.cut
            assert set(journal.replies) == ({"a", "c"} if cut >= first else {"c"})


@pytest.mark.parametrize("name", list(SETTINGS))
def test_other_settings_are_refused(name: str, tmp_path: Path) -> None:
    Journal(tmp_path / "j", SETTINGS).close()
    words = {"model": "model", "prompt_sha256": "prompt", "max_side": "max side"}[name]
    with pytest.raises(TrainingError, match=f"was begun with another {words}. Name another file with --journal"):
        Journal(tmp_path / "j", {**SETTINGS, name: "other"})


@pytest.mark.parametrize(
    "line", ['{"id": "a"', "[]", '{"id": "a"}', json.dumps({**vars(reply("a")), "tokens_in": "x"}), "\0\0"]
)
def test_a_damaged_line_inside_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        journal.append(reply("a"))
    with path.open("a") as stream:
        stream.write(f"{line}\n{json.dumps(vars(reply('b')))}\n")
    before = path.read_bytes()
    with pytest.raises(TrainingError, match=r"line 3 of the journal .* is damaged"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == before


@pytest.mark.parametrize("head", ["{}", '{"journal": 2}', "[]", "text"])
def test_another_file_is_no_journal(head: str, tmp_path: Path) -> None:
    (tmp_path / "j").write_text(f"{head}\n")
    with pytest.raises(TrainingError, match=r"line 1 of the journal .* is damaged"):
        Journal(tmp_path / "j", SETTINGS)


@pytest.mark.parametrize("content", ['{"precious": 1}', "notes", '{"journal": '[:-1] + "s"])
def test_another_file_without_a_line_end_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "j").write_text(content)
    with pytest.raises(TrainingError, match="is no journal, so it is left alone"):
        Journal(tmp_path / "j", SETTINGS)
    assert (tmp_path / "j").read_text() == content


def test_a_lock_that_the_file_system_does_not_know_is_not_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OSError, match="not supported"):
        Journal(tmp_path / "j", SETTINGS)


def test_two_runs_cannot_share_it(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom declip_training.i2t.journal import Journal\n"
        "from declip_runtime.errors import TrainingError\n"
        "try:\n    Journal(Path(sys.argv[1]), {})\nexcept TrainingError as error:\n    print(error)\n"
    )
    with Journal(tmp_path / "j", {}):
        other = subprocess.run([sys.executable, "-c", program, tmp_path / "j"], capture_output=True, text=True)
    assert "is in use by another run" in other.stdout, other.stderr
    other = subprocess.run([sys.executable, "-c", program, tmp_path / "j"], capture_output=True, text=True)
    assert (other.stdout, other.stderr) == ("", "")


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / "j", SETTINGS) as journal:
        journal.append(reply("a"))
        whole = (tmp_path / "j").read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                journal.append(reply("b"))
        assert (tmp_path / "j").read_bytes() == whole
        assert "b" not in journal.replies
        journal.append(reply("c"))
    with Journal(tmp_path / "j", SETTINGS) as journal:
        assert set(journal.replies) == {"a", "c"}


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", SETTINGS) as journal:
        threads = [
            threading.Thread(target=lambda n=n: [journal.append(reply(f"{n}-{i}", "x" * 999)) for i in range(20)])
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Journal(tmp_path / "j", SETTINGS) as journal:
        assert len(journal.replies) == 160
