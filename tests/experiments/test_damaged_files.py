"""Whatever reads a file names it, and the place, however the file is damaged."""

from __future__ import annotations

import json
import pathlib
import shutil
import types

import pytest

import egno_jax
from egno_jax import training
from tests.helpers import FIXTURES

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from matplotlib.figure import Figure

from experiments import dot_plot, nbody, report, run_directory, run_records, settings
from experiments.studies import study

DAMAGE = {
    "not UTF-8": lambda data: data.replace(b'"', b"\xff", 1),
    "cut short": lambda data: data[: len(data) // 2] + b"\n{}\n",
    "5000 digits": lambda data: data.replace(b": ", b": " + b"9" * 5000, 1),
    "brackets": lambda data: b"[" * 100_000 + b"\n{}\n",
    "a number": lambda data: b"3\n{}\n",
    "nothing in it": lambda data: b"{}\n{}\n",
}
DEFAULT = nbody.EXPERIMENT.default


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a valid file of each kind with its reader."""
    folder = tmp_path_factory.mktemp("files")
    line = run_records.RESULTS.read_bytes().splitlines(keepends=True)[0]
    (folder / "results.jsonl").write_bytes(line)
    record = json.loads(line) | {"finished": True}
    (folder / "results.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text('{"kind": "valid", "step": 1, "f_mse": 0.5}\n' * 2)
    run_directory.start(folder, DEFAULT, "a command")
    shutil.copytree(FIXTURES / "checkpoints" / "egno", folder, dirs_exist_ok=True)
    return folder, {
        "results.jsonl": run_records.load,
        "results.json": lambda path: run_records.read_results(path.parent),
        "metrics.jsonl": training.read_json_lines,
        "config.json": lambda path: run_directory.read_config(path.parent, type(DEFAULT)),
        "egno_jax.json": lambda path: egno_jax.load(path.parent),
    }


NAMES = ("results.jsonl", "results.json", "metrics.jsonl", "config.json", "egno_jax.json")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", NAMES)
def test_damaged_json_is_named(files, tmp_path, name, damage):
    folder, readers = files
    path = tmp_path / name
    path.write_bytes((folder / name).read_bytes())
    if name != "egno_jax.json":
        assert readers[name](path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name}(, line \d)?: "):
        readers[name](path)


@pytest.mark.parametrize("key", ["seed", "varied", "f_mse", "mse_per_time", "fingerprint", "steps"])
@pytest.mark.parametrize("value", [None, "x", {"a": 1}, [1]], ids=str)
def test_results_with_a_missing_or_wrong_entry_are_named(files, tmp_path, key, value):
    path = tmp_path / "results.jsonl"
    record = json.loads((files[0] / path.name).read_text())
    if type(value) is type(record[key]) and key not in ("fingerprint", "varied"):
        return
    changed = {**record, key: value} if value is not None else record
    if value is None:
        del changed[key]
    path.write_text(json.dumps(record | changed) + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl(, line 1)?: "):
        run_records.load(path)


@pytest.mark.parametrize("data", [b"\xff", b"- 1\n", b"[" * 5000, b"a: b: c", b""], ids=range(5))
def test_damaged_settings_are_named(tmp_path, data):
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    for read in (lambda: settings.read(path, DEFAULT), lambda: settings.fingerprint(path)):
        with pytest.raises(ValueError, match=r"a\.yaml: got a damaged file"):
            read()


def test_published_results_are_replaced_in_one_step(files, tmp_path, monkeypatch):
    """A full disk leaves the lines that were there."""
    path = tmp_path / "results.jsonl"
    path.write_bytes((files[0] / path.name).read_bytes())
    before = path.read_bytes()
    finished = json.loads(before) | {"finished": True}
    monkeypatch.setattr(run_records, "read_results", lambda _: finished)
    experiment = run_records.EXPERIMENTS[finished["experiment"]]
    config = run_records.config_file(experiment, finished["config"], [settings.CONFIGS])
    monkeypatch.setattr(run_directory, "read_config", lambda *_: experiment.default)
    monkeypatch.setattr(run_records, "_config_of", lambda *_: config)

    def full(self, *_, **__):
        open(self, "w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        run_records.append(tmp_path, path, replace=True)
    assert path.read_bytes() == before
    assert not [*tmp_path.glob(".*partial*")]


def draw_points(path):
    tasks = run_records.by_task(run_records.load(), "nbody")
    dot_plot.draw(nbody.EXPERIMENT, tasks[:1], path)


def draw_study(path):
    study._draw(types.SimpleNamespace(draw=lambda record: study.panels(1, 1, 1)[0]), {}, path)


def write_readme(path):
    report.write_readme(path, {}, set())


def write_config(path):
    settings.write(path, DEFAULT, DEFAULT, "a description")


@pytest.mark.parametrize("write", [draw_points, draw_study, write_readme, write_config])
def test_pictures_pages_and_configs_are_replaced_in_one_step(write, tmp_path, monkeypatch):
    path = tmp_path / "file.png"
    path.write_text(before := f"{report._BEGIN}{report._END}")
    write(path)
    assert path.read_bytes() != before.encode()
    path.write_text(before)

    def full(self, target="", *_, **__):  # the text of a path, or the path of a figure
        open(self if isinstance(self, pathlib.Path) else target, "w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_text() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_config_of_results_is_a_name_and_no_path(tmp_path):
    (tmp_path / "nbody").mkdir()
    (tmp_path / "outside.yaml").write_text("description: not in the folder\n")
    for name in ("../outside", str(tmp_path / "outside")):
        with pytest.raises(ValueError, match="config: got"):
            run_records.config_file(nbody.EXPERIMENT, name, [tmp_path])


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x", ""])
def test_a_checksum_of_another_file_is_named_with_the_checkpoint(files, tmp_path, name):
    folder = shutil.copytree(FIXTURES / "checkpoints" / "egno", tmp_path / "model")
    manifest = json.loads((folder / "egno_jax.json").read_text())
    (folder / "egno_jax.json").write_text(json.dumps(manifest | {"sha256": {name: "0"}}))
    with pytest.raises(ValueError, match=f"{folder}/weights/{name}: the file is missing"):
        egno_jax.load(folder)
