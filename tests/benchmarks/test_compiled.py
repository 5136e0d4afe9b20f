"""Programs compiled for accelerators that are not there, and what is read from them."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import pytest

from benchmarks import (
    cases,
    chips,
    compiled,
    compiled_page,
    hlo,
    kernel_cycles,
    programs,
    provenance,
    records,
    scaling,
    tables,
)
from benchmarks.compiled import Program

MESHES = {
    "v5e:4x4": [(2, 8), (16, 1)],
    "v6e:16x16": [(4, 64)],
    "v5p:4x4x4": [(8, 8), (32, 2), (1, 64)],
    "v5p:16x16x16": [(64, 64)],
    "v5e:4x4*2": [(4, 8), (2, 16)],
}
TEXT = """HloModule example

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: f32[9,3], i: s32[5]) -> f32[5,3] {
  %i = s32[5]{0} parameter(1)
  ROOT %gather.1 = f32[5,3]{1,0:T(8,128)} gather(%p, %i), slice_sizes={1,3}
}

%body (state: (f32[9,3], s32[5])) -> (f32[9,3], s32[5]) {
  %f = f32[5,3]{1,0} fusion(%p, %i), kind=kCustom, calls=%fused
  %g = f32[2]{0} fusion(%p), kind=kLoop, calls=%other, backend_config={"estimated_cycles":"50"}
  ROOT %all = (f32[2]{0}, f32[3,4]{1,0}) all-reduce(%a, %b), to_apply=%sum
}

%condition (state: (f32[9,3], s32[5])) -> pred[] {
  ROOT %less = pred[] compare(%n, %i)
}

ENTRY %main (p: f32[9,3], i: s32[5]) -> f32[2] {
  %jvp_egno_sums_kernel__.2 = f32[8,128]{1,0} custom-call(%p), custom_call_target="tpu_custom_call"
  %loop = (f32[9,3], s32[5]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %start = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), dimensions={0}
  %buffer = f32[4]{0} custom-call(), custom_call_target="AllocateBuffer"
  %copy.1 = f32[9]{0} copy(%c), backend_config={"estimated_cycles":"7"}
  ROOT %unknown = f32[9]{0} fusion(%c), calls=%none, backend_config={"estimated_cycles":"9223372036854775807"}
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_runs():
    assert hlo.figures_of_text(TEXT) == {
        "launches": 3 * 2 + 2,
        "cycles": 3 * 50 + 7,
        "without_estimate": 3 + 2,
        "kernels": {"egno_sums_kernel": 1},
        "gathers": 3,
        "scatters": 0,
        "collectives": {
            "all-reduce": {"count": 3, "bytes": 3 * 4 * (2 + 12)},
            "all-gather": {"count": 1, "bytes": 4 * 8},
        },
    }


def test_the_condition_of_a_loop_says_how_often_it_runs():
    known, condition = ', backend_config={"known_trip_count":{"n":"3"}}', "compare(%n, %i)"
    assert TEXT.count(known) == TEXT.count(condition) == 1
    text = TEXT.replace(known, "")
    assert hlo.figures_of_text(text)["cycles"] == 50 + 7
    text = text.replace(
        f"  ROOT %less = pred[] {condition}",
        """\
  %three = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%n, %three), direction=LT""",
    )
    assert hlo.figures_of_text(text) == hlo.figures_of_text(TEXT)


def test_a_program_without_estimates_has_no_cycles():
    found = hlo.figures_of_text(TEXT.replace("estimated_cycles", "other"))
    assert found["cycles"] is None and found["without_estimate"] is None


def test_the_least_time_is_that_of_products_or_of_bytes():
    chip = chips.chip_of("v5e:4x4")
    assert chip.clock == pytest.approx(1.5e9, rel=0.01)
    assert chips.least_seconds(chip, "ours", chip.peak, 1.0) == 6
    assert chips.least_seconds(chip, "ours-default", chip.peak, 1.0) == 1
    assert chips.least_seconds(chip, "ours", 1.0, chip.bandwidth) == 1
    assert chips.chip_of("h100") is None


@pytest.mark.parametrize(("target", "extra"), [("v5p", "aot-tpu"), ("h100", "aot-cuda")])
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, capsys, target, extra):
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        compiled.parse(["--target", target])
    assert f'pip install "egno_jax[{extra}]"' in capsys.readouterr().err


def test_a_program_that_does_not_compile_is_reported_and_nothing_is_written(
    monkeypatch, capsys, tmp_path
):
    def refuse(program, text):
        raise RuntimeError(f"{program.name} did not compile")

    monkeypatch.setattr(compiled, "compile_program", refuse)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: object())
    out = tmp_path / "new"
    words = ["--target", "v5e", "--case", "nbody-p5", "--kind", "step", "--variant", "ours"]
    assert compiled.main([*words, "--out", str(out)]) == 1
    assert "v5e/nbody-p5/step/ours did not compile" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--case", "protien"], "--case: got ['protien']"),
        (["--target", "v9"], "--target: got v9, expected such as v5e"),
        (["--package", "before=/nowhere"], "--package: got before=/nowhere, expected NAME=PATH"),
    ],
)
def test_unknown_words_are_refused(capsys, words, message):
    with pytest.raises(SystemExit):
        compiled.parse(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["ours", "ours-bf16"])
def test_programs_are_those_of_the_library(variant):
    """Lowered for the CPU: positions of all nodes at all times, and the state after a step."""
    problem, changes = cases.make(cases.TINY), programs.VARIANTS[variant]
    forward = programs.lower_forward(problem, jax.devices()[0], **changes)
    num_nodes, _ = cases.num_nodes_and_edges(problem)
    assert forward.out_info.positions.shape == (cases.TINY.num_times, num_nodes, 3)
    step = programs.lower_step(problem, jax.devices(), **changes)
    state, metrics = step.out_info
    assert state.step.shape == () and metrics.loss.shape == (1,)
    (state_before, _, batch, *_), _ = step.args_info
    assert jax.tree.structure(state) == jax.tree.structure(state_before)
    assert batch.positions.shape == (1, 1, *problem.positions.shape)


def test_a_share_on_a_mesh_has_an_eighth_of_the_graphs_and_its_own_times():
    protein = Program("v5e:4x4", "protein", "step", "data=2,time=8", "ours", provenance.ROOT)
    case = compiled.case_of(protein)
    assert (case.num_graphs, case.num_times) == (1, 8 * cases.CASES["protein"].num_times)
    long = protein._replace(case=compiled.LONG.name)
    assert compiled.case_of(long) == compiled.LONG


def program(target="v5e", kind="step", mesh=None, row="ours"):
    return Program(target, cases.TINY.name, kind, mesh, row, provenance.ROOT)


def test_the_page_says_on_every_table_that_nothing_was_run(tmp_path):
    figures = hlo.figures_of_text(TEXT) | {
        "sizes": {"N": 4, "E": 12},
        **dict.fromkeys(("least_operations", "least_bytes"), 1e6),
        **dict.fromkeys(("temporary_bytes", "argument_bytes", "output_bytes"), 1e6),
        **dict.fromkeys(("compile_seconds", "compile_cpu_seconds"), 5.0),
    }
    without_estimate = figures | {"cycles": None, "without_estimate": None}
    entries = {
        program().name: figures,
        program(kind="forward", row="naive").name: figures,
        program("h100").name: without_estimate,
        program("v5e:4x4", mesh="data=2,time=8").name: figures,
        program("v5e:4x4", mesh="data=16,time=1").name: {"error": "RESOURCE_EXHAUSTED"},
    }
    made = dict.fromkeys(("command", "commit", "machine", "python", "date"), "") | {"versions": {}}
    path = tmp_path / "results" / "compiled.json"
    records.write(path, records.merge(records.EMPTY, made, entries))
    tables.write(tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    shown, _, _ = text.partition("### What made")
    assert shown.count("|---") and shown.count(compiled_page.NOTE) >= shown.count("\n|---") == 4
    assert "does not fit" in shown and "3 all-reduce" in shown
    for name, entry in entries.items():
        assert name in compiled_page.line(name, entry)


# With the compiler for TPU


@pytest.fixture(scope="module")
def libtpu():
    return pytest.importorskip("libtpu", reason="needs the extra aot-tpu")


def test_a_training_step_on_a_mesh_of_tpus_only_sums(libtpu):
    """Nothing is gathered: only sums over the coefficients, and of the gradients."""
    mesh = program("v5e:2x2", mesh="data=2,time=2")
    found = compiled.compile_program(mesh)
    assert found["cycles"] > 0
    assert set(found["collectives"]) == {"all-reduce"}
    case, sizes = compiled.case_of(mesh), found["sizes"]
    size = scaling.Size(
        layers=case.num_layers,
        width=case.width,
        modes=case.num_modes,
        times=case.num_times,
        nodes=sizes["N"],
        edges=sizes["E"],
        node_features=case.num_node_features,
        edge_features=case.num_edge_features,
        time_embed=case.time_embed_dim,
    )
    assert found["sizes"]["P"] == 2 * cases.TINY.num_times
    # The gradient of a convolution's kernel is summed in its real form, which is twice as large.
    kernels = 4 * size.layers * 2 * size.modes * (size.width**2 + 4)
    weights = 4 * scaling.num_weights(size)  # over times, then over data
    expected = scaling.time_traffic(size) + 2 * weights + kernels
    assert 0.5 * expected < found["collectives"]["all-reduce"]["bytes"] < expected


def test_every_torus_has_its_meshes(libtpu):
    """Every device is used once, and times are not split over several slices."""
    script = f"""
        from benchmarks.programs import devices_of
        from egno_jax.training import MeshShape, make_mesh

        for target, shapes in {MESHES!r}.items():
            devices = devices_of(target)
            for shape in shapes:
                mesh = make_mesh(MeshShape(*shape), devices=devices)
                assert mesh.devices.shape == shape and mesh.axis_names == ("data", "time")
                assert len({{device.id for device in mesh.devices.flat}}) == len(devices)
                slices = [{{getattr(d, "slice_index", 0) for d in row}} for row in mesh.devices]
                assert all(len(found) == 1 for found in slices)
                assert all(axis.name == "Auto" for axis in mesh.axis_types)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=provenance.ROOT,
        env=os.environ | compiled.ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Times and width: 1, 2, 4 and 8 rows for each node of a table, and rows of two tiles.
SIZES_OF_KERNELS = [(1, 128), (3, 64), (8, 128), (8, 256), (3, 128)]


def test_the_kernels_compile_and_their_cycles_are_counted(libtpu, tmp_path):
    script = f"""
        import dataclasses, json
        from benchmarks import cases, kernel_cycles

        for times, width in {SIZES_OF_KERNELS}:
            case = cases.Case("few", "contacts", 2, (70, 70), times, width, 1, 2, 2, 20)
            request = {{"case": dataclasses.asdict(case), "target": "v5e"}}
            request["variant"] = "ours-pallas"
            texts = kernel_cycles.programs_of(*kernel_cycles.arguments(request), blocks=1)
            assert all("tpu_custom_call" in text for text in texts.values())
        print(json.dumps(kernel_cycles.kernel_cycles(request)))
    """
    flags = kernel_cycles.environment(tmp_path) | compiled.ENVIRONMENTS["ours-pallas"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=provenance.ROOT,
        env=os.environ | compiled.ENVIRONMENT | flags | {"EGNO_JAX_LAYOUT": "tpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    # Products of 2 graphs of 1400 edges alone take at least this.
    assert 5_000 < found["egno_sums_kernel"] < found["egno_gradient_kernel"]
