"""What the readers of data files share."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest

from egno_jax.datasets import md17, npz

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int8)}


def packed(**members):
    buffer = io.BytesIO()
    np.savez(buffer, **members)
    return buffer.getvalue()


def test_arrays_come_back_those_chosen_alone(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(packed(**ARRAYS, c=np.array([{}])))
    found = npz.read_npz(path, lambda names: [name for name in names if name != "c"])
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    path.write_bytes(packed())
    assert npz.read_npz(path) == {}


def inside(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ": got b'' at its start"),
        (b"PK", ": got b'PK' at its start"),
        (b"\x80\x04}.", ": got b"),
        (b"some words", ": got b'some' at its start, expected an .npz archive"),
        (b"PK\x03\x04 and garbage", ": its list of arrays cannot be read (BadZipFile"),
        (packed(**ARRAYS)[:-30], ": its list of arrays cannot be read"),
        (packed(a=np.array([{}])), ", a: got a pickle of Python objects, which is never loaded"),
        (inside(b"\x80\x04}."), ", a: got bytes"),
        (inside(b"\x93NUMPY\x01\x00"), ", a: it cannot be read"),
    ],
)
def test_what_is_no_archive_of_arrays_is_said_with_its_file(tmp_path, data, message):
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        npz.read_npz(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "allow_pickle" not in str(caught.value)  # nobody is told to unpickle it


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        npz.read_npz(tmp_path / "missing.npz")
    with pytest.raises(IsADirectoryError):
        npz.read_npz(tmp_path)


def test_what_is_wrong_with_the_names_is_said_with_the_file(tmp_path):
    def choose(names):
        raise ValueError(f"no c among {names}")

    path = tmp_path / "x.npz"
    path.write_bytes(packed(**ARRAYS))
    with pytest.raises(ValueError, match=r"x\.npz: no c among \['a', 'b'\]"):
        npz.read_npz(path, choose)


def test_one_folder_of_data_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EGNO_DATA_DIR", "~/data")
    for find in (npz.data_directory, md17.data_directory):
        assert find() == tmp_path / "data"
        assert find("~/mine") == tmp_path / "mine"
    monkeypatch.delenv("EGNO_DATA_DIR")
    assert npz.data_directory() is None


def test_what_a_killed_writer_left_is_removed_after_a_day(tmp_path):
    path = tmp_path / "x.npz"
    old, new = (tmp_path / f".x.npz.{name}.partial" for name in ("old", "new"))
    for each in (old, new):
        each.touch()
    os.utime(old, (0, 0))
    npz.save_npz(path, ARRAYS)
    assert sorted(tmp_path.iterdir()) == sorted([path, new])
