from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from egno_jax.datasets import cache

SETTINGS = {"seed": 43, "frames": (30, 40), "dt": 0.001}
ARRAYS = {"positions": np.arange(12.0).reshape(2, 2, 3), "charges": np.array([1, -1], np.int8)}


class Builder:
    """Counts how often it builds."""

    def __init__(self, arrays=ARRAYS):
        self.arrays, self.calls = arrays, 0

    def __call__(self):
        self.calls += 1
        return self.arrays


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        assert found[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(found[key], expected[key])


def rebuilds(directory, match):
    """Asserts that the cache warns, builds once, and is whole again."""
    builder = Builder()
    with pytest.warns(UserWarning, match=match):
        found = cache.load_or_build("data", SETTINGS, builder, directory=directory)
    assert_same(found, ARRAYS)
    assert_same(cache.read(directory / "data.npz", SETTINGS), ARRAYS)
    assert builder.calls == 1


@pytest.fixture
def filled(tmp_path):
    cache.write(tmp_path / "data.npz", ARRAYS, SETTINGS)
    return tmp_path


any_array = hnp.arrays(
    dtype=st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes()),
    shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)
names = st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda name: name != "header")


@settings(deadline=None, max_examples=30)
@given(arrays=st.dictionaries(names, any_array, max_size=3))
def test_read_returns_what_write_was_given(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("cache") / "deep" / "data.npz"
    cache.write(path, arrays, SETTINGS)
    assert_same(cache.read(path, SETTINGS), arrays)
    assert os.listdir(path.parent) == ["data.npz"]


@settings(deadline=None, max_examples=150)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_harmless_or_found(tmp_path_factory, where, flip):
    path = tmp_path_factory.mktemp("cache") / "data.npz"
    cache.write(path, ARRAYS, SETTINGS)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= flip
    path.write_bytes(data)
    try:
        found = cache.read(path, SETTINGS)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert_same(found, ARRAYS)


@settings(deadline=None, max_examples=30)
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_found(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("cache") / "data.npz"
    cache.write(path, ARRAYS, SETTINGS)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"data\.npz: (.* cannot be read|got .* at its start)"):
        cache.read(path, SETTINGS)


def test_builds_once_and_reads_thereafter(tmp_path):
    builder = Builder()
    for _ in range(3):
        assert_same(cache.load_or_build("data", SETTINGS, builder, directory=tmp_path), ARRAYS)
    assert builder.calls == 1


def test_truncation_is_repaired(filled):
    path = filled / "data.npz"
    path.write_bytes(path.read_bytes()[:-100])
    rebuilds(filled, "cannot be read")


def test_wrong_contents_in_a_sound_file_are_repaired(filled):
    path = filled / "data.npz"
    with np.load(path) as file:
        members = dict(file)
    members["positions"][1, 0, 2] += 1e-15
    members["positions"][0, 0, 1] += 1e-3
    np.savez(path, **members)
    rebuilds(filled, "do not match their checksum")


def test_a_file_of_another_kind_is_repaired(filled):
    (filled / "data.npz").write_text("not a zip file")
    rebuilds(filled, "expected an .npz archive")
    np.savez(filled / "data.npz", positions=np.zeros(3))
    rebuilds(filled, "cannot be read")


def test_other_settings_build_again_and_are_named(filled):
    cache.write(filled / "data.npz", {"x": np.zeros(2)}, {**SETTINGS, "dt": 0.002})
    rebuilds(filled, r"dt=0\.002, expected 0\.001")


def test_another_format_version_builds_again(filled, monkeypatch):
    monkeypatch.setattr(cache, "FORMAT_VERSION", cache.FORMAT_VERSION + 1)
    rebuilds(filled, "format version 1, expected 2")


def test_pickled_objects_are_never_loaded(filled):
    header = json.dumps({"version": 1, "settings": {}, "sha256": ""})
    np.savez(filled / "data.npz", header=np.array(header), x=np.array([{}], dtype=object))
    rebuilds(filled, "got a pickle")


def test_a_build_that_fails_leaves_the_old_file(filled):
    def fail():
        raise RuntimeError("no data")

    before = (filled / "data.npz").read_bytes()
    with pytest.warns(UserWarning, match="seed"), pytest.raises(RuntimeError, match="no data"):
        cache.load_or_build("data", {**SETTINGS, "seed": 1}, fail, directory=filled)
    assert (filled / "data.npz").read_bytes() == before


def test_a_write_that_dies_half_way_leaves_the_old_file(filled, monkeypatch):
    def half(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(cache.np, "savez", half)
    with pytest.raises(OSError, match="disk full"):
        cache.write(filled / "data.npz", {"x": np.zeros(3)}, SETTINGS)
    assert os.listdir(filled) == ["data.npz"]
    assert_same(cache.read(filled / "data.npz", SETTINGS), ARRAYS)


def test_a_cache_that_cannot_be_written_warns_and_returns_the_arrays(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.warns(UserWarning, match="cannot be (written|read)") as caught:
        found = cache.load_or_build("data", SETTINGS, Builder(), directory=blocker / "below")
    assert "EGNO_CACHE_DIR" in str(caught[-1].message)
    assert_same(found, ARRAYS)


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "data.npz"
    versions = [{"x": np.full(20000, float(k))} for k in range(6)]
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            if path.exists():
                seen.append(cache.read(path, SETTINGS)["x"])

    reader = threading.Thread(target=watch)
    writers = [
        threading.Thread(target=lambda a=a: [cache.write(path, a, SETTINGS) for _ in range(5)])
        for a in versions
    ]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    seen.append(cache.read(path, SETTINGS)["x"])
    assert all((x == x[0]).all() and x.shape == (20000,) for x in seen)
    assert os.listdir(tmp_path) == ["data.npz"]


def test_settings_are_equal_as_json(filled):
    arrays = cache.read(filled / "data.npz", {"dt": 0.001, "frames": [30, 40], "seed": 43})
    assert_same(arrays, ARRAYS)


def test_the_directory_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("EGNO_CACHE_DIR", str(tmp_path / "chosen"))
    cache.load_or_build("data", SETTINGS, Builder())
    assert (tmp_path / "chosen" / "data.npz").exists()
    monkeypatch.delenv("EGNO_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_directory() == tmp_path / ".cache" / "egno_jax"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({"x": np.array([{}])}, "object"), ({"header": np.zeros(2)}, "header")],
)
def test_write_refuses_what_it_could_not_read(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        cache.write(tmp_path / "data.npz", arrays, SETTINGS)


def test_read_says_that_a_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        cache.read(tmp_path / "data.npz", SETTINGS)


def test_without_a_home_the_variable_to_set_is_named(monkeypatch):
    def fail(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EGNO_CACHE_DIR", raising=False)
    monkeypatch.setattr(cache.pathlib.Path, "expanduser", fail)
    with pytest.raises(ValueError, match="EGNO_CACHE_DIR: got None and no home directory"):
        cache.default_directory()
