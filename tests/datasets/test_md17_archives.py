"""Downloads of the original archives, from a server on this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest

from egno_jax.datasets import md17
from egno_jax.datasets.md17 import __main__ as command_line

pytest.importorskip("pooch")

FRAMES = 20
ARCHIVE = "md17_ethanol.npz"


class Server:
    """Serves a folder on 127.0.0.1, and counts the requests."""

    def __init__(self, folder):
        self.folder, self.requests = folder, []
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                server.requests.append(self.path)
                super().do_GET()

        handler = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/npz/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A publisher of an ethanol of 20 frames."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    molecule = md17.MOLECULES["ethanol"]._replace(num_frames=FRAMES)
    monkeypatch.setitem(md17.MOLECULES, "ethanol", molecule)
    (tmp_path / "public" / "npz").mkdir(parents=True)
    server = Server(tmp_path / "public")
    publish(server)
    yield server
    server.close()


def publish(server, name=ARCHIVE, seed=0, **changes):
    """Puts an archive with all fields of the original where the server finds it."""
    rng = np.random.default_rng(seed)
    members = {
        "R": rng.normal(size=(FRAMES, 9, 3)),
        "z": np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], np.uint8),
        "E": rng.normal(size=(FRAMES, 1)),
        "F": rng.normal(size=(FRAMES, 9, 3)),
        "name": np.array("ethanol"),
    }
    np.savez(server.folder / "npz" / name, **(members | changes))
    return (server.folder / "npz" / name).read_bytes()


def fetch(server, tmp_path, **options):
    return md17.download("ethanol", data_dir=tmp_path / "data", base_url=server.url, **options)


def test_an_archive_is_downloaded_once_and_its_hash_is_kept(server, tmp_path):
    data = publish(server)
    path = fetch(server, tmp_path)
    assert path == md17.path_of("ethanol", archive="md17", data_dir=tmp_path / "data")
    assert path.read_bytes() == data
    assert fetch(server, tmp_path) == path
    assert server.requests == [f"/npz/{ARCHIVE}"]
    record = path.with_name(f"{ARCHIVE}.sha256").read_text()
    assert record == f"{hashlib.sha256(data).hexdigest()}  {ARCHIVE}\n"
    trajectory = md17.load_trajectory("ethanol", archive="md17", data_dir=tmp_path / "data")
    assert trajectory.source == md17.ORIGINAL


def test_a_file_that_changes_after_its_download_is_found(server, tmp_path):
    path = fetch(server, tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{ARCHIVE}: got SHA-256 .*delete it"):
        fetch(server, tmp_path)
    path.unlink()
    fetch(server, tmp_path)


def test_a_publisher_that_changes_the_archive_is_found(server, tmp_path):
    path = fetch(server, tmp_path)
    path.unlink()
    publish(server, seed=1)
    with pytest.raises(ValueError, match="does not match the known hash"):
        fetch(server, tmp_path)
    assert not path.exists()


def test_a_known_hash_is_held_to(server, tmp_path):
    digest = hashlib.sha256(publish(server)).hexdigest()
    with pytest.raises(ValueError, match="does not match the known hash"):
        fetch(server, tmp_path, known_hash="0" * 64)
    path = fetch(server, tmp_path, known_hash=digest)
    with pytest.raises(ValueError, match="got SHA-256"):
        fetch(server, tmp_path, known_hash="0" * 64)
    assert path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"R": np.random.default_rng(0).normal(size=(FRAMES - 1, 9, 3))},
            "got 19 frames of z = .*, not MD17's ethanol, expected 20 frames",
        ),
        (
            {"z": np.array([6, 6, 7, 1, 1, 1, 1, 1, 1])},
            r".*z = \[6, 6, 7, 1.* not MD17.* expected 20 frames, 1 of Z = 8, 2 of Z = 6",
        ),
        ({"R": np.full((FRAMES, 9, 3), np.nan)}, r"R\[0, 0, 0\]: got nan"),
    ],
)
def test_what_is_no_archive_of_the_molecule_is_not_kept(server, tmp_path, changes, message):
    publish(server, **changes)
    with pytest.raises(ValueError, match=rf"{ARCHIVE}: {message}"):
        fetch(server, tmp_path)
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


def test_half_an_archive_is_not_kept(server, tmp_path):
    data = publish(server)
    (server.folder / "npz" / ARCHIVE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{ARCHIVE}: .* is damaged or incomplete"):
        fetch(server, tmp_path)
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


def test_a_file_that_was_put_there_by_hand_is_checked_and_kept(server, tmp_path):
    path = md17.path_of("ethanol", archive="md17", data_dir=tmp_path / "data")
    path.parent.mkdir(parents=True)
    path.write_bytes(publish(server)[:500])
    with pytest.raises(ValueError, match="damaged"):
        fetch(server, tmp_path)
    assert path.exists()
    path.write_bytes(publish(server))
    assert fetch(server, tmp_path) == path
    assert not server.requests


def test_a_damaged_record_is_named(server, tmp_path):
    path = fetch(server, tmp_path)
    path.with_name(f"{ARCHIVE}.sha256").write_text("abc")
    with pytest.raises(ValueError, match=rf"{ARCHIVE}\.sha256: got 'abc', expected a SHA-256"):
        fetch(server, tmp_path)


def test_a_missing_file_is_an_error_of_the_network(server, tmp_path):
    (server.folder / "npz" / ARCHIVE).unlink()
    with pytest.raises(OSError, match="404"):
        fetch(server, tmp_path)


def test_the_command_line_downloads(server, tmp_path, monkeypatch, capsys):
    download = md17.archives.download
    local = functools.partial(download, base_url=server.url)
    monkeypatch.setattr(md17.archives, "download", local)
    words = ["download", "--molecule", "ethanol", "--data-dir", str(tmp_path / "data")]
    assert command_line.main(words) == 0
    assert "verified" in capsys.readouterr().out
    assert command_line.main([*words, "--sha256", "0" * 64]) == 2
    assert "error: " in capsys.readouterr().err
