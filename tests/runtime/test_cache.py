from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import BinaryIO

import pytest

from declip_runtime.cache import DEFAULT_LIMIT, LIMIT_VARIABLE, Cache
from declip_runtime.errors import CacheError, CacheWarning, UsageError

from .other_user import bound_by_permissions, common_folder, needs_permissions

DIGEST = 32  # bytes that each entry takes beyond its content


def add(cache: Cache, name: str, size: int, *, used: float | None = None) -> None:
    cache.put(name, size, lambda file: file.write(bytes(size)))
    if used is not None and file_of(cache, name).exists():
        os.utime(file_of(cache, name), (used, used))


def content_of(cache: Cache, name: str) -> bytes | None:
    content = cache.get(name)
    return None if content is None else bytes(content)


def file_of(cache: Cache, name: str) -> Path:
    return cache.location / "compiled" / f"{name}.declip-compiled"


def names(cache: Cache) -> list[str]:
    return [entry.name for entry in cache.list()]


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_filled_once_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "cache")
    assert cache.get("a") is None
    assert (cache.list(), cache.size, cache.clear()) == ((), 0, 0)
    cache.put("a", 100, lambda file: file.write(b"content" * 100))
    content = cache.get("a")
    assert content is not None
    assert bytes(content) == b"content" * 100
    assert (names(cache), cache.size) == (["a"], 700 + DIGEST)
    content[0] = 0  # OpenVINO asks for memory that it could write into
    assert content_of(cache, "a") == b"content" * 100
    assert cache.clear() == 700 + DIGEST
    assert bytes(content[1:7]) == b"ontent"  # who has it keeps it
    assert cache.get("a") is None
    assert everything(tmp_path) == []


def test_a_writer_may_go_back(tmp_path: Path) -> None:
    """OpenVINO patches its header at the end."""

    def patching(file: BinaryIO) -> None:
        file.write(b"....content")
        file.seek(0)
        file.write(b"head")

    cache = Cache(tmp_path)
    cache.put("a", 11, patching)
    assert content_of(cache, "a") == b"headcontent"


def test_what_is_not_ours_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=200)
    add(cache, "a", 100)
    ours = cache.location / "compiled"
    foreign = [tmp_path / "photos" / "a.jpg", tmp_path / "notes.txt", tmp_path / ".work-photos" / "b.jpg"]
    foreign += [ours / "album" / "c.jpg", ours / "d.txt", ours / ".work-mine", ours / ".declip-compiled"]
    foreign += [ours / "folder.declip-compiled" / "e.jpg", ours / f".work-{'0' * 32}" / "f.jpg"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        for each in (path, path.parent):
            os.utime(each, (1, 1))
    link = ours / "link.declip-compiled"
    link.symlink_to(foreign[0])
    assert (names(cache), cache.size) == (["a"], 100 + DIGEST)
    add(cache, "b", 100)  # evicts the other
    assert names(cache) == ["b"]
    cache.clear()
    assert everything(tmp_path) == sorted([*foreign, link])
    assert cache.get("folder") is None


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=300)
    now = time.time()
    add(cache, "old", 100, used=now - 300)
    add(cache, "older", 100, used=now - 400)
    cache.get("older")  # a hit makes it the youngest
    add(cache, "new", 100)
    assert sorted(names(cache)) == ["new", "older"]
    assert cache.size <= 300


def test_an_entry_over_the_limit_is_not_even_begun_and_named(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=99_000_000)
    message = "100.0 MB, more than the 99.0 MB .* every start compiles anew.*DECLIP_CACHE_LIMIT=200MB"
    with pytest.warns(CacheWarning, match=message):
        cache.put("big", 100_000_000, lambda file: pytest.fail("begun"))
    assert not cache.location.exists()


def test_an_entry_larger_than_expected_is_not_kept_either(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=250)
    add(cache, "other", 100)
    with pytest.warns(CacheWarning, match=LIMIT_VARIABLE):
        cache.put("big", 10, lambda file: file.write(bytes(250)))
    assert names(cache) == ["other"]
    assert len(everything(tmp_path)) == 1


def test_models_of_one_engine_do_not_make_room_for_each_other(tmp_path: Path) -> None:
    """They are loaded one after another, again and again: the one used longest ago is the next that is needed."""

    def start(cache: Cache) -> list[str]:
        """The models that had to be compiled."""
        missing = [name for name in (f"abc-{n}" for n in range(5)) if cache.get(name) is None]
        for name in missing:
            cache.put(name, 100, lambda file: file.write(bytes(100)), engine="abc")
        return missing

    limit = 4 * (100 + DIGEST) + 50
    add(Cache(tmp_path, limit), "other", 100)
    with pytest.warns(CacheWarning, match=r"MB of the same engine's other models, .*DECLIP_CACHE_LIMIT=1MB") as caught:
        assert len(start(Cache(tmp_path, limit))) == 5
    assert len(caught) == 1
    assert sorted(names(Cache(tmp_path, limit))) == [f"abc-{n}" for n in range(4)], "others' models make room"
    for _ in range(2):
        with pytest.warns(CacheWarning, match=LIMIT_VARIABLE):
            assert start(Cache(tmp_path, limit)) == ["abc-4"]


def test_models_that_nobody_uses_any_more_make_room(tmp_path: Path) -> None:
    """Those of the same engine that another release compiled."""
    limit = 2 * (100 + DIGEST)
    for name in ("abc-old-1", "abc-old-2"):
        Cache(tmp_path, limit).put(name, 100, lambda file: file.write(bytes(100)), engine="abc")
    cache = Cache(tmp_path, limit)
    for name in ("abc-1", "abc-2"):
        cache.put(name, 100, lambda file: file.write(bytes(100)), engine="abc")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cache.put(name, 100, lambda file: file.write(b"x" * 100), engine="abc")  # again, in its own place
    assert sorted(names(cache)) == ["abc-1", "abc-2"]
    assert content_of(cache, "abc-2") == b"x" * 100


def test_a_limit_of_nothing_keeps_nothing_without_a_word(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add(Cache(tmp_path / "cache", limit=0), "a", 1)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("stated", "limit"),
    [
        ("", DEFAULT_LIMIT), ("0", 0), ("12345", 12345), ("100B", 100), ("8GB", 8 * 10**9), ("8g", 8 * 10**9),
        ("1.5 GB", 1_500_000_000), ("500MiB", 500 << 20), (" 2 kb ", 2000), ("1TiB", 1 << 40),
    ],
)  # fmt: skip
def test_the_limit_can_be_stated(stated: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, stated)
    assert Cache().limit == limit
    assert Cache(limit=7).limit == 7


@pytest.mark.parametrize("stated", ["much", "-1", "8 GB or so", "8XB", "1e9", "٣"])
def test_a_limit_that_is_no_size_is_named(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, stated)
    with pytest.raises(UsageError, match=f"{LIMIT_VARIABLE}=.*500MiB"):
        Cache()


@pytest.mark.parametrize("error", [RuntimeError("compiler"), KeyboardInterrupt()])
def test_a_failed_writer_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    cache = Cache(tmp_path)

    def failing(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        cache.put("a", 1, failing)
    cache.put("empty", 1, lambda file: None)
    assert everything(tmp_path) == []


def test_a_disk_that_fills_up_is_a_warning(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def failing(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "no space left")

    with pytest.warns(CacheWarning, match="cannot be kept.*no space left"):
        cache.put("a", 1, failing)
    with pytest.warns(CacheWarning, match="nearly full"):
        Cache(tmp_path, limit=1 << 62).put("a", 1 << 61, lambda file: pytest.fail("begun"))
    assert everything(tmp_path) == []


def damage(content: bytearray, how: str) -> bytearray:
    middle = len(content) // 2
    match how:
        case "one bit":
            content[middle] ^= 1
        case "zeroes":
            content[middle : middle + 4096] = bytes(4096)
        case "hash":
            content[-1] ^= 1
        case "shorter":
            del content[middle:]
        case "longer":
            content += b"x"
        case "empty":
            content.clear()
    return content


@pytest.mark.parametrize("how", ["one bit", "zeroes", "hash", "shorter", "longer", "empty"])
def test_an_altered_entry_is_dropped_aloud(tmp_path: Path, how: str) -> None:
    cache = Cache(tmp_path)
    cache.put("a", 10, lambda file: file.write(os.urandom(3 << 20)))
    file = file_of(cache, "a")
    file.write_bytes(damage(bytearray(file.read_bytes()), how))
    with pytest.warns(CacheWarning, match="altered on disk") as caught:
        assert cache.get("a") is None
    assert len(caught) == 1
    assert everything(tmp_path) == []


@needs_permissions
def test_an_entry_that_cannot_be_read_is_absent() -> None:
    with common_folder() as folder:
        cache = Cache(folder / "cache")
        add(cache, "a", 1)
        add(cache, "b", 1)
        file_of(cache, "a").chmod(0)
        with bound_by_permissions():
            assert cache.get("a") is None
            assert cache.get("b") is not None
        for closed in (cache.location / "compiled", cache.location):
            closed.chmod(0)
            with bound_by_permissions():
                assert cache.get("b") is None
                with pytest.raises(CacheError, match="permissions"):
                    cache.list()
                with pytest.warns(CacheWarning, match="cannot be kept"):
                    add(cache, "c", 1)
            closed.chmod(0o755)


@needs_permissions
def test_another_user_can_read_what_was_written() -> None:
    """As far as the umask goes."""
    with common_folder() as folder:
        before = os.umask(0o022)
        try:
            add(Cache(folder / "cache"), "a", 1)
        finally:
            os.umask(before)
        assert file_of(Cache(folder / "cache"), "a").stat().st_mode & 0o777 == 0o644
        with bound_by_permissions():
            assert Cache(folder / "cache").get("a") is not None


def test_a_place_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.get("a") is None
    with pytest.warns(CacheWarning, match="compiled models cannot be kept.*cache_dir=") as caught:
        cache.put("a", 1, lambda file: pytest.fail("begun"))
    assert len(caught) == 1
    assert cache.list() == ()


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    add(cache, "a", 1)
    dead, alive = (cache.location / "compiled" / f".work-{digit * 32}" for digit in "01")
    for remove in (lambda: add(cache, "b", 1), cache.clear):
        for file in (dead, alive):
            file.write_bytes(b"half")
        os.utime(dead, (1, 1))
        assert set(names(cache)) <= {"a", "b"}
        remove()
        assert (dead.exists(), alive.exists()) == (False, True)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing on Windows")
def test_a_process_killed_while_it_writes_leaves_no_entry(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from declip_runtime.cache import Cache\n"
        "def slow(file):\n"
        "    file.write(bytes(100_000))\n"
        "    print(flush=True)\n"
        "    time.sleep(60)\n"
        "Cache(sys.argv[1]).put('a', 100_000, slow)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cache = Cache(tmp_path)
    (left,) = everything(tmp_path)
    assert (names(cache), cache.get("a")) == ([], None)
    os.utime(left, (1, 1))
    add(cache, "a", 1)
    assert content_of(cache, "a") == b"\0"
    assert len(everything(tmp_path)) == 1


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Four fill the same two entries over and over while they clear each other's; none ever sees half an entry."""
    program = (
        "import sys, warnings\n"
        "from declip_runtime.cache import Cache\n"
        "warnings.simplefilter('error')\n"
        "cache = Cache(sys.argv[1], limit=150_000)\n"
        "for i in range(60):\n"
        "    name = f'e{i % 2}'\n"
        "    cache.put(name, 100_000, lambda file: [file.write(name.encode() * 5_000) for _ in range(10)])\n"
        "    found = cache.get(name)\n"
        "    assert found is None or found == name.encode() * 50_000\n"
        "    cache.list()\n"
        "    if i % 20 == 19:\n"
        "        cache.clear()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(p.communicate()[1], p.returncode) for p in processes] == [("", 0)] * 4
    cache = Cache(tmp_path)
    assert cache.size <= 150_000
    assert len(everything(tmp_path)) == len(cache.list())


@needs_permissions
def test_clear_says_what_it_cannot_remove() -> None:
    with common_folder() as folder:
        cache = Cache(folder / "cache")
        add(cache, "a", 1)
        (cache.location / "compiled").chmod(0o555)
        with bound_by_permissions():
            with pytest.raises(CacheError, match="permissions"):
                cache.clear()
            assert cache.get("a") is not None  # reading still works


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG convention is Linux's")
def test_location_by_convention_when_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache()
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.location == Path("/home/someone/.cache/declip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.location == tmp_path / "declip"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache.location == Path("/home/someone/.cache/declip")
    assert Cache(tmp_path).location == tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="user ids without a home are Linux's")
def test_a_user_without_a_home_gets_a_warning() -> None:
    """A container started under an arbitrary user id."""
    program = (
        "import os, warnings\n"
        "from declip_runtime.cache import Cache\n"
        "from declip_runtime.errors import CacheError, CacheWarning\n"
        "del os.environ['HOME']\n"
        "os.setuid(54321) if os.geteuid() == 0 else None\n"
        "warnings.simplefilter('error')\n"
        "assert Cache().get('a') is None\n"
        "for use in (Cache().list, Cache().clear, lambda: Cache().location):\n"
        "    try:\n"
        "        use()\n"
        "    except CacheError as error:\n"
        "        assert 'no home folder' in str(error)\n"
        "    else:\n"
        "        raise AssertionError\n"
        "try:\n"
        "    Cache().put('a', 1, print)\n"
        "except CacheWarning as warning:\n"
        "    print(warning)\n"
        "os.environ['XDG_CACHE_HOME'] = '/stated'\n"
        "print(Cache().location)\n"
    )
    if os.geteuid() != 0:
        pytest.skip("needs root to become a user without a home")
    environment = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "no home folder" in result.stdout, result.stderr
    assert result.stdout.endswith("/stated/declip\n")
