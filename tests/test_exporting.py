"""Exported models: they run without this library, for any sizes, and equal `apply`."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export

import egno_jax
from egno_jax import exporting, families
from egno_jax import graph as graph_lib
from egno_jax.recipe import GraphRecipe
from tests import helpers

pytest.importorskip("flatbuffers")

CONFIG = egno_jax.EGNOConfig(
    num_layers=1, hidden_dim=16, num_modes=3, mean_field=True, mean_field_channels=2
)
# Runs an exported model where neither this library nor Flax can be imported.
SCRIPT = """
import sys
for name in ("egno_jax", "flax", "jraph", "e3nn_jax"):
    sys.modules[name] = None
import jax, numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
for path in sys.argv[2:]:
    flat = dict(np.load(path))
    times = flat.pop("times")
    graph = {}
    for name, array in flat.items():
        *field, key = name.split("/")
        (graph.setdefault(field[0], {}) if field else graph)[key] = array
    np.savez(path, **program.call(graph, times))
"""


def random_graph(*sizes, num_edge_features=2, seed=0):
    """A batch of complete graphs of these sizes."""
    rng = np.random.default_rng(seed)

    def one(size):
        edges = graph_lib.fully_connected_edges(size)
        values = rng.normal(size=(len(edges.senders), num_edge_features)).astype(np.float32)
        edges = edges._replace(features=values if num_edge_features else None)
        nodes = [rng.normal(size=(size, width)).astype(np.float32) for width in (3, 3, 4)]
        return graph_lib.build(*nodes, edges)

    return graph_lib.batch([one(size) for size in sizes])


def as_dictionary(graph):
    edges = {} if graph.edges is None else {"edges": graph.edges}
    names = ("nodes", "senders", "receivers", "n_node")
    return {name: getattr(graph, name) for name in names} | edges


def flat(dictionary):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(dictionary)
    }


def assert_close(found, trajectory):
    for name in ("positions", "velocities", "features"):
        expected = getattr(trajectory, name)
        np.testing.assert_allclose(
            found[name], expected, rtol=0, atol=2e-6 * float(abs(expected).max()), err_msg=name
        )


@pytest.fixture(scope="module")
def params():
    graph = random_graph(3)
    made = egno_jax.init(jax.random.key(0), CONFIG, graph, [1.0])
    # Weights that are zero at the start would hide a wrong formula.
    noise = np.random.default_rng(1)
    weights = jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype(x.dtype), made)
    return weights


def test_a_program_runs_where_this_library_is_not_installed(params, tmp_path):
    file = tmp_path / "model.stablehlo"
    egno_jax.export(params, file)
    cases = [(random_graph(5), 5), (random_graph(3, 4, 2), 2), (random_graph(6, 6), 1)]
    paths = []
    for index, (graph, num_times) in enumerate(cases):
        paths.append(tmp_path / f"{index}.npz")
        times = np.arange(1, num_times + 1, dtype=np.float32)
        np.savez(paths[-1], times=times, **flat(as_dictionary(graph)))
    subprocess.run([sys.executable, "-c", SCRIPT, file, *paths], check=True, cwd=tmp_path)
    for path, (graph, num_times) in zip(paths, cases, strict=True):
        times = np.arange(1, num_times + 1, dtype=np.float32)
        assert_close(np.load(path), jax.jit(egno_jax.apply)(params, graph, times))


def test_a_program_has_the_globals_of_its_example(params, tmp_path, monkeypatch):
    def charges(params, graph, times):
        charge = graph.globals["charge"] + 0 * times[0]
        return egno_jax.Trajectory(charge, graph.nodes["velocities"], graph.nodes["features"])

    monkeypatch.setattr(exporting, "apply", charges)
    graph, charge = random_graph(4, 3), np.array([[1.0], [2.0]], np.float32)
    example = graph._replace(globals={"charge": np.zeros((2, 1), np.float32)})
    egno_jax.export(params, tmp_path / "model", platforms=["cpu"], graph=example)
    program = jax_export.deserialize(bytearray((tmp_path / "model").read_bytes()))
    inputs = as_dictionary(graph) | {"globals": {"charge": charge}}
    found = program.call(inputs, np.ones(1, np.float32))["positions"]
    np.testing.assert_array_equal(found, charge)


@pytest.mark.slow
def test_a_program_is_differentiated_as_often_as_asked(params, tmp_path):
    graph, times = random_graph(4), np.array([1.0, 2.0], np.float32)
    nodes = graph.nodes

    def loss(of, positions):
        return jax.numpy.sum(of(graph._replace(nodes={**nodes, "positions": positions})) ** 2)

    expected = jax.grad(
        lambda x: loss(lambda graph: helpers.apply(params, graph, times).positions, x)
    )(nodes["positions"])
    for order in (0, 1):
        file = tmp_path / f"model_{order}"
        egno_jax.export(params, file, platforms=["cpu"], vjp_order=order)
        program = jax_export.deserialize(bytearray(file.read_bytes()))

        def exported(graph, program=program):
            return program.call(as_dictionary(graph), times)["positions"]

        if order == 0:
            with pytest.raises(ValueError, match="VJP"):
                jax.grad(lambda x, of=exported: loss(of, x))(nodes["positions"])
            continue
        found = jax.grad(lambda x, of=exported: loss(of, x))(nodes["positions"])
        helpers.assert_close(found, expected, 1e-4)


def test_a_program_has_the_platforms_and_no_kernels_of_this_machine(params, tmp_path):
    egno_jax.export(params, tmp_path / "model.stablehlo", platforms=["cpu", "tpu"])
    program = jax_export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "tpu")
    targets = re.findall(r"custom_call @(\w+)", program.mlir_module())
    assert set(targets) <= {"shape_assertion", "stablehlo"}


def test_examples_determine_arrays_and_axes(params, tmp_path):
    graph = random_graph(3, 4)
    more = graph._replace(nodes=graph.nodes | {"mass": np.zeros((7, 2, 3), np.float32)})
    times = np.array([[1, 2], [3, 5]], np.int32)
    egno_jax.export(params, tmp_path / "a", graph=more, times=times, platforms=["cpu"])
    program = jax_export.deserialize(bytearray((tmp_path / "a").read_bytes()))
    assert_close(
        program.call(as_dictionary(more), times), jax.jit(egno_jax.apply)(params, graph, times)
    )


def test_external_vectors_are_inputs_of_the_program(tmp_path):
    graph, times = random_graph(3, 4), np.array([1.0, 2.0], np.float32)
    vectors = np.random.default_rng(0).normal(size=(7, 1, 3)).astype(np.float32)
    graph = graph._replace(nodes=graph.nodes | {"vectors": vectors})
    config = egno_jax.EGNOConfig(layer="vector", num_layers=1, hidden_dim=16, num_vectors=4)
    params = egno_jax.init(jax.random.key(0), config, graph, times)
    egno_jax.export(params, tmp_path / "a", platforms=["cpu"])
    program = jax_export.deserialize(bytearray((tmp_path / "a").read_bytes()))
    assert_close(
        program.call(as_dictionary(graph), times), jax.jit(egno_jax.apply)(params, graph, times)
    )


def test_a_config_of_a_script_is_found_by_its_fields():
    """A class of `__main__` has another name in the process that reads the program."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(egno_jax.EGNOConfig):
        own_field: int = 3

    config, known = OwnConfig(num_layers=1), families._FAMILIES
    data = json.dumps(["__main__:OwnConfig", config.to_json(), None]).encode()
    with pytest.raises(ValueError, match=r"unknown field.*own_field.*import"):
        exporting._config_from_bytes(data)
    try:
        egno_jax.model.register(OwnConfig, known[egno_jax.EGNOConfig])
        assert exporting._config_from_bytes(data) == (config, None)
    finally:
        known.pop(OwnConfig, None)


def test_apply_itself_can_be_serialized(params):
    graph, times = random_graph(3), np.ones(1, np.float32)
    params = dataclasses.replace(params, recipe=GraphRecipe(spacing=2.0))
    data = jax_export.export(jax.jit(egno_jax.apply))(params, graph, times).serialize(vjp_order=1)
    program = jax_export.deserialize(data)
    found = program.call(params, graph, times)
    assert isinstance(found, egno_jax.Trajectory)
    assert_close(vars(found), jax.jit(egno_jax.apply)(params, graph, times))


@pytest.mark.slow
def test_a_context_grid_and_a_baseline_of_one_time_are_exported(tmp_path):
    graph, times = random_graph(3, num_edge_features=0), np.array([1.5, 2.0, 7.0], np.float32)
    any_times = egno_jax.EGNOConfig(
        num_layers=1, hidden_dim=16, temporal_grid="context", context_times=(1.0, 2.0, 3.0)
    )
    egnn = egno_jax.baselines.BaselineConfig(method="egnn", num_layers=1, hidden_dim=16)
    for config, requested in ((any_times, times), (egnn, times[:1])):
        params = egno_jax.init(jax.random.key(0), config, graph, requested)
        file = tmp_path / f"model_{len(requested)}"
        egno_jax.export(params, file, platforms=["cpu"])
        program = jax_export.deserialize(bytearray(file.read_bytes()))
        found = program.call(as_dictionary(graph), requested)
        assert_close(found, jax.jit(egno_jax.apply)(params, graph, requested))


def test_egnn_s_is_refused_and_exported_as_the_message_says(tmp_path):
    config = egno_jax.baselines.BaselineConfig(method="egnn-s", num_layers=2, hidden_dim=8)
    params = helpers.random_params(np.random.default_rng(0), config, 4)
    with pytest.raises(ValueError, match=r"times: got P times, expected a fixed number"):
        egno_jax.export(params, tmp_path / "model", platforms=["cpu"])
    graph, times = random_graph(3), np.array([1.0, 2.0], np.float32)
    program = jax_export.export(jax.jit(egno_jax.apply))(params, graph, times)
    assert program.call(params, graph, times).positions.shape == (2, 3, 3)


def test_errors(params, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected 4 by the weights"):
        graph = random_graph(3)
        nodes = graph.nodes | {"features": graph.nodes["features"][:, :1]}
        egno_jax.export(params, tmp_path / "model", graph=graph._replace(nodes=nodes))
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"flatbuffers"):
        egno_jax.export(params, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_is_replaced_only_if_that_is_requested(params, tmp_path):
    file = tmp_path / "model"
    file.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"path: got .*model, which exists; .*pass overwrite=True"):
        egno_jax.export(params, file, platforms=["cpu"])
    assert file.read_bytes() == b"mine"
    egno_jax.export(params, file, platforms=["cpu"], overwrite=True)
    assert jax_export.deserialize(bytearray(file.read_bytes())).platforms == ("cpu",)
    with pytest.raises(ValueError, match="path: got int, expected a path"):
        egno_jax.export(params, 3)


@pytest.mark.parametrize("platforms", ["cpu", [], ["gpu"], ["foo"]])
def test_platforms_are_known(platforms, tmp_path):
    params = helpers.random_params(np.random.default_rng(0), egno_jax.EGNOConfig(num_layers=1))
    with pytest.raises(ValueError, match=r'platforms: got .*NVIDIA is "cuda"'):
        egno_jax.export(params, tmp_path / "a.stablehlo", platforms=platforms)
