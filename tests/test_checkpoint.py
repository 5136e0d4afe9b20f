"""Checkpoints: the same bits come back, and what is damaged or in the way is said and left."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import egno_jax
from egno_jax import CheckpointError, EGNOConfig, families
from tests import helpers

CONFIG = EGNOConfig(num_layers=1, hidden_dim=4, num_modes=2, time_scale=0.5, velocity_weight=0.25)


def random_params(seed=0, **fields):
    config = dataclasses.replace(CONFIG, **fields)
    return helpers.random_params(np.random.default_rng(seed), config)


def assert_same_bits(found, expected):
    assert found.config == expected.config
    found, expected = (jax.tree_util.tree_flatten_with_path(x) for x in (found, expected))
    assert found[1] == expected[1]
    for (path, a), (_, b) in zip(found[0], expected[0], strict=True):
        assert a.dtype == b.dtype, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def contents(directory):
    """Every file below a directory, with its bytes."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A checkpoint to be copied, not to be changed."""
    directory = tmp_path_factory.mktemp("stored") / "model"
    egno_jax.save(directory, random_params())
    return directory


@pytest.fixture
def checkpoint(stored, tmp_path):
    """A checkpoint to be damaged."""
    return shutil.copytree(stored, tmp_path / "model")


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16", "float16"])
def test_save_and_load_give_the_same_bits(tmp_path, param_dtype):
    params = random_params(param_dtype=param_dtype)
    egno_jax.save(tmp_path / "model", params)
    assert_same_bits(egno_jax.load(tmp_path / "model"), params)


def test_float64_weights_come_back_with_x64_and_are_never_rounded(tmp_path):
    params = random_params(param_dtype="float64")
    with helpers.using("float64"):
        egno_jax.save(tmp_path / "model", params)
        assert_same_bits(egno_jax.load(tmp_path / "model"), params)
    with pytest.raises(CheckpointError, match=r"float64, which JAX would round .*jax_enable_x64"):
        egno_jax.load(tmp_path / "model")


def test_unusual_bits_survive(tmp_path):
    params = random_params()
    bias = params.weights["embedding"]["linear"]["bias"]
    bias[:] = [-0.0, np.inf, np.finfo(np.float32).tiny / 2, np.nan]
    egno_jax.save(tmp_path / "model", params)
    assert_same_bits(egno_jax.load(tmp_path / "model"), params)


def test_loaded_params_give_the_same_trajectory(stored):
    graph = helpers.random_graph(np.random.default_rng(0))
    times = np.arange(1.0, 4.0, dtype=np.float32)
    found = helpers.apply(egno_jax.load(str(stored)), graph, times)
    helpers.assert_trees_close(found, helpers.apply(random_params(), graph, times), 0.0)


def test_save_makes_parents_and_leaves_nothing_else(tmp_path):
    egno_jax.save(tmp_path / "a" / "b" / "model", random_params())
    assert os.listdir(tmp_path / "a" / "b") == ["model"]
    assert sorted(os.listdir(tmp_path / "a" / "b" / "model")) == ["egno_jax.json", "weights"]


def test_a_relative_directory_is_that_of_the_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    egno_jax.save("model", random_params())
    assert_same_bits(egno_jax.load("model"), random_params())


def test_an_empty_directory_may_be_filled(tmp_path):
    egno_jax.save(tmp_path, random_params())
    assert_same_bits(egno_jax.load(tmp_path), random_params())


def test_manifest_says_what_made_the_weights(stored):
    manifest = json.loads((stored / "egno_jax.json").read_text())
    assert EGNOConfig.from_json(json.dumps(manifest["config"])) == CONFIG
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["sha256"].keys() == {str(x) for x in contents(stored / "weights")}


def test_save_does_not_overwrite_unless_told(checkpoint):
    before = contents(checkpoint)
    with pytest.raises(CheckpointError, match="already there; pass overwrite=True"):
        egno_jax.save(checkpoint, random_params(1))
    assert contents(checkpoint) == before
    egno_jax.save(checkpoint, random_params(1), overwrite=True)
    assert_same_bits(egno_jax.load(checkpoint), random_params(1))
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_overwriting_takes_the_new_config_along(checkpoint):
    egno_jax.save(checkpoint, random_params(hidden_dim=6), overwrite=True)
    assert egno_jax.load(checkpoint).config.hidden_dim == 6


def test_what_is_no_checkpoint_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="directory"):
            egno_jax.save(tmp_path, random_params(), overwrite=overwrite)
    assert contents(tmp_path).popitem()[1] == b"precious"


def test_a_file_in_the_way_is_not_overwritten(tmp_path):
    path = tmp_path / "model"
    path.write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="directory"):
            egno_jax.save(path, random_params(), overwrite=overwrite)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("method", ["save", "close"])
def test_a_save_that_fails_leaves_things_as_they_were(checkpoint, overwrite, method):
    directory = checkpoint if overwrite else checkpoint.parent / "new"
    before, original = contents(checkpoint.parent), getattr(ocp.StandardCheckpointer, method)

    def fail_afterwards(*args):
        original(*args)
        raise OSError("disk full")

    failure = mock.patch.object(ocp.StandardCheckpointer, method, fail_afterwards)
    with failure, pytest.raises(OSError, match="disk full"):
        egno_jax.save(directory, random_params(1), overwrite=overwrite)
    assert contents(checkpoint.parent) == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_weights_that_were_donated_leave_no_file(tmp_path):
    params = jax.tree.map(jax.numpy.asarray, random_params())
    jax.tree.leaves(params)[0].delete()
    with pytest.raises(RuntimeError, match="deleted"):
        egno_jax.save(tmp_path / "new" / "model", params)
    assert os.listdir(tmp_path) == []


def test_a_failure_when_moving_into_place_keeps_the_old_checkpoint(checkpoint):
    before, rename = contents(checkpoint), type(checkpoint).rename

    def fail_to_move_the_new(self, target):
        if target == checkpoint and "-replaced-" not in self.name:
            raise OSError("disk full")
        return rename(self, target)

    with mock.patch.object(type(checkpoint), "rename", fail_to_move_the_new):
        with pytest.raises(OSError, match="disk full"):
            egno_jax.save(checkpoint, random_params(1), overwrite=True)
    assert contents(checkpoint) == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


@pytest.mark.parametrize("name", ["nothing", "nothing/at/all"])
def test_loading_from_nowhere(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"is no checkpoint, it has no egno_jax\.json"):
        egno_jax.load(tmp_path / name)


def test_loading_a_file(tmp_path):
    (tmp_path / "model").write_text("x")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        egno_jax.load(tmp_path / "model")


def largest_weight_file(checkpoint):
    files = [path for path in (checkpoint / "weights").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_truncated_weight_file_is_named(checkpoint):
    path = largest_weight_file(checkpoint)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=f"{path}: its SHA-256 is .* truncated or changed"):
        egno_jax.load(checkpoint)


def test_one_flipped_bit_in_any_file_is_found(checkpoint):
    for path in contents(checkpoint / "weights"):
        path = checkpoint / "weights" / path
        intact = path.read_bytes()
        changed = bytearray(intact)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError, match=str(path)):
            egno_jax.load(checkpoint)
        path.write_bytes(intact)
    assert_same_bits(egno_jax.load(checkpoint), random_params())


def test_a_deleted_weight_file_is_named(checkpoint):
    path = largest_weight_file(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path}: the file is missing"):
        egno_jax.load(checkpoint)


def test_deleted_weights_are_missed(checkpoint):
    shutil.rmtree(checkpoint / "weights")
    with pytest.raises(CheckpointError, match="the file is missing"):
        egno_jax.load(checkpoint)


def change_manifest(checkpoint, change):
    path = checkpoint / "egno_jax.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(checkpoint, version):
    change_manifest(checkpoint, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(CheckpointError, match=f"format_version is {version!r}, .* reads 1"):
        egno_jax.load(checkpoint)


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"null", b'"text"', b"{}"], ids=repr
)
def test_a_manifest_of_garbage_is_refused(checkpoint, garbage):
    (checkpoint / "egno_jax.json").write_bytes(garbage)
    with pytest.raises(CheckpointError, match=r"egno_jax\.json"):
        egno_jax.load(checkpoint)


@pytest.mark.parametrize("sizes", [[1, 2], "text", 3, {"nodes": "a"}, {"nodes": 1.5, "edges": 2}])
def test_damaged_feature_sizes_are_refused(checkpoint, sizes):
    change_manifest(checkpoint, lambda manifest: manifest.update(feature_sizes=sizes))
    with pytest.raises(CheckpointError, match=r"egno_jax\.json: feature_sizes: got .*two numbers"):
        egno_jax.load(checkpoint)


@pytest.mark.parametrize("key", ["config", "sha256"])
def test_a_manifest_that_lacks_an_entry_is_refused(checkpoint, key):
    change_manifest(checkpoint, lambda manifest: manifest.pop(key))
    with pytest.raises(CheckpointError, match=rf"the entries \['{key}'\] are missing"):
        egno_jax.load(checkpoint)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_dim", 8, r"block_0/.* of shape \(.*4.*\), expected .*hidden_dim=8"),
        ("hidden_dim", 3, r"block_0/.* expected .*hidden_dim=3"),
        ("num_layers", 2, "block_1"),
        ("num_modes", 3, "temporal_conv"),
        ("time_embed_dim", 99, r"embedding/.* expected .*time_embed_dim=99"),
        ("num_layers", -1, "EGNOConfig.num_layers"),
        ("depth", 3, "unknown field"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(checkpoint, field, value, message):
    change_manifest(checkpoint, lambda manifest: manifest["config"].update({field: value}))
    with pytest.raises(CheckpointError, match=message):
        egno_jax.load(checkpoint)


def test_weights_of_more_layers_than_the_config_says_are_refused(tmp_path):
    egno_jax.save(tmp_path / "model", random_params(num_layers=2))
    change_manifest(tmp_path / "model", lambda manifest: manifest["config"].update(num_layers=1))
    with pytest.raises(CheckpointError, match="block_1"):
        egno_jax.load(tmp_path / "model")


def test_a_checkpoint_that_a_kill_left_behind_is_named(checkpoint):
    """Killed between the two moves of an overwrite: the old one stands beside, whole."""
    left_behind = checkpoint.with_name(f".{checkpoint.name}-replaced-0123")
    checkpoint.rename(left_behind)
    with pytest.raises(CheckpointError, match=f"the one before it is {left_behind}"):
        egno_jax.load(checkpoint)
    assert egno_jax.load(left_behind).config == CONFIG


def test_an_interrupt_between_the_moves_keeps_the_old_checkpoint(checkpoint):
    before, rename = contents(checkpoint), type(checkpoint).rename

    def interrupt(self, target):
        moved = rename(self, target)
        if self == checkpoint:
            raise KeyboardInterrupt
        return moved

    with mock.patch.object(type(checkpoint), "rename", interrupt):
        with pytest.raises(KeyboardInterrupt):
            egno_jax.save(checkpoint, random_params(1), overwrite=True)
    assert contents(checkpoint) == before


def test_what_load_would_refuse_is_not_saved(tmp_path):
    params = random_params()
    deeper = dataclasses.replace(params, config=dataclasses.replace(CONFIG, num_layers=2))
    with pytest.raises(ValueError, match=r"params.weights: got block_1/.* expected"):
        egno_jax.save(tmp_path / "model", deeper)
    with pytest.raises(ValueError, match=r"params: got dict, expected egno_jax.Params"):
        egno_jax.save(tmp_path / "model", params.weights)
    assert not (tmp_path / "model").exists()


def test_a_manifest_that_lists_no_files_is_refused(checkpoint):
    change_manifest(checkpoint, lambda manifest: manifest.update(sha256={}))
    with pytest.raises(CheckpointError, match="lists no weight files"):
        egno_jax.load(checkpoint)


def test_a_model_of_ones_own_asks_for_its_module(tmp_path):
    """Registered, it is saved and loaded as any; in a process that has not, it is not known."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(EGNOConfig):
        own_field: int = 3

    known = families._FAMILIES
    try:
        egno_jax.model.register(OwnConfig, known[EGNOConfig])
        params = helpers.random_params(np.random.default_rng(0), OwnConfig(num_layers=1))
        egno_jax.save(tmp_path / "own", params)
        assert egno_jax.load(tmp_path / "own").config == params.config
    finally:
        known.pop(OwnConfig, None)
    expected = rf"OwnConfig', which is not registered; .*import {OwnConfig.__module__} first"
    with pytest.raises(CheckpointError, match=expected):
        egno_jax.load(tmp_path / "own")
    change_manifest(tmp_path / "own", lambda manifest: manifest.pop("config_class"))
    with pytest.raises(CheckpointError, match="import the module that registers it first"):
        egno_jax.load(tmp_path / "own")


def test_a_model_of_ones_own_without_fields_of_its_own_comes_back_as_itself(tmp_path):
    """Its fields are those of EGNO; the name of its class in the manifest tells them apart."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(EGNOConfig):
        pass

    known, directory = families._FAMILIES, tmp_path / "own"
    try:
        egno_jax.model.register(OwnConfig, known[EGNOConfig])
        params = helpers.random_params(np.random.default_rng(0), OwnConfig(num_layers=1))
        egno_jax.save(directory, params)
        assert type(egno_jax.load(directory).config) is OwnConfig
        egno_jax.save(tmp_path / "egno", random_params())
        assert type(egno_jax.load(tmp_path / "egno").config) is EGNOConfig
    finally:
        known.pop(OwnConfig, None)
    with pytest.raises(CheckpointError, match=rf"import {OwnConfig.__module__} first"):
        egno_jax.load(directory)
    for without_name in (
        lambda manifest: manifest.update(config_class="__main__:OwnConfig"),
        lambda manifest: manifest.pop("config_class"),
    ):
        change_manifest(directory, without_name)
        assert type(egno_jax.load(directory).config) is EGNOConfig


@pytest.mark.parametrize("name", ["egno_jax.config:Nothing", 3, ["a"]], ids=repr)
def test_a_class_that_there_is_not_is_named(checkpoint, name):
    change_manifest(checkpoint, lambda manifest: manifest.update(config_class=name))
    with pytest.raises(CheckpointError, match=r"config_class is .*, which is not registered"):
        egno_jax.load(checkpoint)


def test_what_is_no_path_is_named(tmp_path):
    params = random_params()
    for call in (lambda: egno_jax.load(None), lambda: egno_jax.save(params, tmp_path)):
        with pytest.raises(ValueError, match=r"directory: got .*expected a path"):
            call()
    with pytest.raises(ValueError, match=r"model: got dict.*the model comes first, then the state"):
        egno_jax.predict({"positions": np.zeros((5, 3))}, params)
    egno_jax.save(tmp_path / "a", params)
    with pytest.raises(egno_jax.CheckpointError, match=r"it is a file of one, load .*a$"):
        egno_jax.load(tmp_path / "a" / "egno_jax.json")


REPLACER = """
import shutil, sys
from pathlib import Path
from egno_jax.checkpoint import _move_into_place

*sources, target = map(Path, sys.argv[1:])
print(flush=True)
for line in sys.stdin:
    source = sources[int(line)]
    _move_into_place(shutil.copytree(source, target.with_name("staging")), target)
    print(flush=True)
"""


def test_a_checkpoint_that_is_replaced_meanwhile_is_read_whole(tmp_path):
    """Another process replaces it three times during each call of `load`."""
    known = [random_params(seed) for seed in range(2)]
    places = [tmp_path / f"source_{seed}" for seed in range(2)]
    for place, params in zip((*places, tmp_path / "model"), (*known, known[0]), strict=True):
        egno_jax.save(place, params)
    target = tmp_path / "model"
    command = [sys.executable, "-c", REPLACER, *map(str, (*places, target))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as writer:
        writer.stdout.readline()
        found = []
        for _ in range(20):
            writer.stdin.write("1\n0\n1\n")
            writer.stdin.flush()
            found.append(egno_jax.load(target))
            for _ in range(3):
                writer.stdout.readline()
        writer.stdin.close()
    bits = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)] for params in known]
    for params in found:
        assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)] in bits


@pytest.mark.parametrize("is_of_run", [False, True])
def test_a_checkpoint_between_the_moves_of_a_replacement_is_waited_for(
    tmp_path, monkeypatch, is_of_run
):
    """The process that replaces it may be stopped there for a while, or for ever."""
    target = tmp_path / "run" / "best"
    egno_jax.save(target, random_params())
    replaced = target.with_name(".best-replaced-0")
    target.rename(replaced)
    loaded = target.parent if is_of_run else target
    waits = []
    monkeypatch.setattr(egno_jax.checkpoint.time, "sleep", waits.append)
    with pytest.raises(CheckpointError, match=r"a save was killed, .*\.best-replaced-0"):
        egno_jax.load(loaded)
    waits.clear()

    def resume_after_three(wait):
        waits.append(wait)
        if len(waits) == 3:
            replaced.rename(target)

    monkeypatch.setattr(egno_jax.checkpoint.time, "sleep", resume_after_three)
    assert_same_bits(egno_jax.load(loaded), random_params())


def test_saving_to_a_link_keeps_the_link(tmp_path):
    egno_jax.save(tmp_path / "model", random_params())
    (tmp_path / "latest").symlink_to("model")
    egno_jax.save(tmp_path / "latest", random_params(1), overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "model"]
    assert_same_bits(egno_jax.load(tmp_path / "model"), random_params(1))


@pytest.mark.parametrize("name", ["[x", "**", "a]**"])
def test_signs_of_patterns_are_plain_names(tmp_path, name):
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        egno_jax.load(tmp_path / name)
