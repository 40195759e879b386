from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from declip_runtime.cache import Cache
from declip_runtime.errors import CacheError, CacheWarning


def add(cache: Cache, name: str, size: int, *, used: float | None = None) -> None:
    with cache.fill(name, size) as folder:
        assert folder is not None
        (folder / "blob").write_bytes(bytes(size))
    if used is not None and (cache.location / name).exists():
        os.utime(cache.location / name, (used, used))


def names(cache: Cache) -> list[str]:
    return [entry.name for entry in cache.list()]


def test_filled_once_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "cache")
    assert cache.get("a") is None
    assert (cache.list(), cache.size, cache.clear()) == ((), 0, 0)
    add(cache, "a", 100)
    folder = cache.get("a")
    assert folder is not None
    assert (folder / "blob").stat().st_size == 100
    assert (names(cache), cache.size) == (["a"], 100)
    assert cache.clear() == 100
    assert cache.get("a") is None
    assert list(cache.location.iterdir()) == []


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=250)
    now = time.time()
    add(cache, "old", 100, used=now - 300)
    add(cache, "older", 100, used=now - 400)
    cache.get("older")  # a hit makes it the youngest
    add(cache, "new", 100)
    assert sorted(names(cache)) == ["new", "older"]
    assert cache.size <= 250


def test_an_entry_over_the_limit_is_not_even_begun(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with cache.fill("big", 100) as folder:
            assert folder is None
    assert not cache.location.exists()


def test_an_entry_larger_than_expected_is_evicted_too(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=99)
    with cache.fill("big", 10) as folder:
        assert folder is not None
        (folder / "blob").write_bytes(bytes(100))
    assert cache.list() == ()


def test_a_failed_fill_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def failing() -> None:
        with cache.fill("a", 1) as folder:
            assert folder is not None
            (folder / "blob").write_bytes(b"half")
            raise RuntimeError("compiler")

    with pytest.raises(RuntimeError, match="compiler"):
        failing()
    with cache.fill("empty", 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.get("a") is None
    with (
        pytest.warns(CacheWarning, match="compiled models cannot be kept.*cache_dir=") as caught,
        cache.fill("a", 1) as f,
    ):
        assert f is None
    assert len(caught) == 1
    assert cache.list() == ()


def test_a_full_disk_is_a_warning(tmp_path: Path) -> None:
    with (
        pytest.warns(CacheWarning, match="nearly full"),
        Cache(tmp_path, limit=1 << 62).fill("a", 1 << 61) as folder,
    ):
        assert folder is None


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    dead, alive = tmp_path / ".work-dead", tmp_path / ".work-alive"
    for folder in (dead, alive):
        folder.mkdir()
    os.utime(dead, (1, 1))
    add(cache, "a", 1)
    assert (dead.exists(), alive.exists()) == (False, True)
    assert names(cache) == ["a"]


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Four fill the same two entries over and over while they clear each other's."""
    program = (
        "import sys\n"
        "from declip_runtime.cache import Cache\n"
        "cache = Cache(sys.argv[1], limit=1500)\n"
        "for i in range(60):\n"
        "    name = f'e{i % 2}'\n"
        "    with cache.fill(name, 1000) as folder:\n"
        "        (folder / 'blob').write_bytes(bytes(1000))\n"
        "    found = cache.get(name)\n"
        "    cache.list()\n"
        "    if i % 20 == 19:\n"
        "        cache.clear()\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(p.communicate()[1], p.returncode) for p in processes] == [("", 0)] * 4
    cache = Cache(tmp_path)
    assert cache.size <= 1500
    assert not list(tmp_path.glob(".work-*"))


def test_clear_says_what_it_cannot_remove(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    add(cache, "a", 1)
    if os.geteuid() == 0:  # root may remove anything, except from a folder that does not change
        pytest.skip("permissions do not bind root")
    cache.location.chmod(0o500)
    try:
        with pytest.raises(CacheError, match="permissions"):
            cache.clear()
        assert cache.get("a") is not None  # reading still works
    finally:
        cache.location.chmod(0o700)


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
def test_a_user_without_a_home_gets_a_warning(tmp_path: Path) -> None:
    """A container started under an arbitrary user id."""
    program = (
        "import os, warnings\n"
        "from pathlib import Path\n"
        "from declip_runtime.cache import Cache\n"
        "del os.environ['HOME']\n"
        "os.setuid(54321) if os.geteuid() == 0 else None\n"
        "warnings.simplefilter('error')\n"
        "assert Cache().get('a') is None and Cache().list() == ()\n"
        "try:\n"
        "    with Cache().fill('a', 1): pass\n"
        "except Warning as warning:\n"
        "    print(warning)\n"
    )
    if os.geteuid() != 0:
        pytest.skip("needs root to become a user without a home")
    environment = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "no home folder" in result.stdout, result.stderr
