"""The cache of compiled kernels: damaged, incomplete, of others, missing, and shared."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import shutil

import pytest

from egno_jax.ops.kernels import library

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="kernels are for Linux and macOS"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]
NAME = "kernels-1234.so"
# Stands in for the C++ compiler, which takes half a minute: counts, and compiles empty kernels.
COMPILER = """#!/bin/sh
echo compiled >> {count}
sleep {seconds}
cc -shared -fPIC -o "$2" {source}
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Returns the command of a compiler; `num_compiled` counts its calls."""
    monkeypatch.setenv("EGNO_CACHE_DIR", str(tmp_path / "new" / "cache"))
    return fake_compiler(tmp_path, "c++", library._SYMBOLS)


def fake_compiler(tmp_path, name, symbols, seconds=0.0):
    source, path = tmp_path / f"{name}.c", tmp_path / name
    source.write_text("".join(f"void {symbol}(void) {{}}\n" for symbol in symbols))
    path.write_text(COMPILER.format(count=tmp_path / "count", source=source, seconds=seconds))
    path.chmod(0o700)
    return [str(path)]


def num_compiled(tmp_path):
    count = tmp_path / "count"
    return len(count.read_text().splitlines()) if count.exists() else 0


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_library_is_compiled_once_and_kept(compiler, tmp_path):
    path, found = library._cached(compiler, NAME)
    assert path == tmp_path / "new" / "cache" / "kernels" / NAME
    assert all(hasattr(found, symbol) for symbol in library._SYMBOLS)
    assert library._cached(compiler, NAME)[0] == path
    assert num_compiled(tmp_path) == 1
    assert names(path.parent) == ["compile.lock", "kernels-1234.sha256", NAME]
    assert all(each.stat().st_mode & 0o77 == 0 for each in path.parent.glob("kernels*"))


def cut_short(path, tmp_path):
    path.write_bytes(path.read_bytes()[:100])


def without_kernels(path, tmp_path):
    path.unlink()
    os.system(f"cc -shared -fPIC -o {path} -x c /dev/null")
    path.with_suffix(".sha256").write_text(library._checksum(path))


def writable_for_others(path, tmp_path):
    path.chmod(0o722)


def a_link(path, tmp_path):
    path.rename(tmp_path / NAME)
    path.symlink_to(tmp_path / NAME)


def a_folder(path, tmp_path):
    path.unlink()
    (path / "folder").mkdir(parents=True)


def a_folder_for_the_checksum(path, tmp_path):
    path.with_suffix(".sha256").unlink()
    path.with_suffix(".sha256").mkdir()


def leftovers(path, tmp_path):
    path.unlink()
    (path.parent / "build-k1ll3d").mkdir()


DAMAGE = (
    *(cut_short, without_kernels, writable_for_others, a_link, a_folder),
    *(a_folder_for_the_checksum, leftovers),
)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda each: each.__name__)
def test_what_is_not_whole_or_not_ours_is_compiled_again_once(compiler, tmp_path, damage):
    path, _ = library._cached(compiler, NAME)
    damage(path, tmp_path)
    _, found = library._cached(compiler, NAME)
    assert all(hasattr(found, symbol) for symbol in library._SYMBOLS)
    assert num_compiled(tmp_path) == 2 and library._is_intact(path)
    assert names(path.parent) == ["compile.lock", "kernels-1234.sha256", NAME]


def test_files_of_another_user_are_not_loaded(compiler, tmp_path, monkeypatch):
    path, _ = library._cached(compiler, NAME)
    assert library._open(path) is not None
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert library._open(path) is None


def writable_folder(tmp_path, monkeypatch):
    (tmp_path / "new" / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "new" / "cache" / "kernels").chmod(0o777)


def a_file_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("")


def no_home(tmp_path, monkeypatch):
    monkeypatch.delenv("EGNO_CACHE_DIR")

    def fail(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(library.Path, "expanduser", fail)


def a_lock_that_is_held(tmp_path, monkeypatch):
    def held(*_, **__):
        raise library.LockedError("process 1")

    monkeypatch.setattr(library, "lock", held)


TROUBLE = (writable_folder, a_file_in_the_way, no_home, a_lock_that_is_held)


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda each: each.__name__)
def test_without_a_cache_the_process_compiles_for_itself(
    compiler, tmp_path, monkeypatch, caplog, trouble
):
    trouble(tmp_path, monkeypatch)
    with caplog.at_level(logging.WARNING, "egno_jax"):
        path, found = library._cached(compiler, NAME)
    assert all(hasattr(found, symbol) for symbol in library._SYMBOLS)
    assert not path.exists()
    assert "compiled for this process alone" in caplog.text and "EGNO_CACHE_DIR" in caplog.text


def test_a_compiler_that_leaves_kernels_out_is_an_error_and_nothing_is_kept(compiler, tmp_path):
    wrong = fake_compiler(tmp_path, "wrong", library._SYMBOLS[1:])
    with pytest.raises(library.KernelError, match="made a library without the kernels"):
        library._cached(wrong, NAME)
    assert names(tmp_path / "new" / "cache" / "kernels") == ["compile.lock"]


def test_one_compiles_while_others_wait(compiler, tmp_path):
    """Threads stand in for processes: the lock belongs to an open file."""
    slow = fake_compiler(tmp_path, "slow", library._SYMBOLS, seconds=1)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = [*pool.map(lambda _: library._cached(slow, NAME), range(3))]
    assert {path.name for path, _ in found} == {NAME}
    assert num_compiled(tmp_path) == 1
