"""What a mesh sends and holds, read from compiled programs, and the formulas of docs/scaling.md."""

from __future__ import annotations

import math

import pytest

from benchmarks import scaling
from tests.training.mesh_runs import MODEL_SIZE
from tests.training.test_mesh import result_of, start

L, C, M, N, E = (MODEL_SIZE[i] for i in (0, 1, 2, 4, 5))


@pytest.fixture(scope="module")
def costs():
    """Returns what XLA says of programs for 8 devices that split the times."""
    return result_of(start("traffic", num_devices=8))


def shapes_of(collectives):
    return sorted(tuple(sorted(shape)) for _, shape, _ in collectives)


@pytest.mark.parametrize("num_times", ["16", "1024"])
def test_a_convolution_sums_its_coefficients_and_sends_nothing_else(costs, num_times):
    """One all-reduce of [M, N, C], real and imaginary, forward and one more backward."""
    found = costs["conv"][num_times]
    coefficients = tuple(sorted((2, M, N, C)))
    for name, count in (("forward", 1), ("both", 2)):
        assert {kind for kind, *_ in found[name]} == {"all-reduce"}
        assert shapes_of(found[name]) == [coefficients] * count
        assert sum(size for *_, size in found[name]) == count * 8 * M * N * C


@pytest.mark.parametrize("grid", ["index", "context"])
def test_a_mesh_decodes_what_one_device_does(costs, grid):
    """5 times on 8 devices, each graph's own; on the context grid 3 + 5."""
    assert costs["errors"][grid] < 1e-5


def test_the_bytes_of_a_step_do_not_grow_with_the_times(costs):
    few, many = (costs["model"][f"{times},8"]["collectives"] for times in (16, 1024))
    assert {kind for kind, *_ in few + many} == {"all-reduce"}
    assert shapes_of(few) == shapes_of(many)


def test_times_that_do_not_divide_evenly_gather_nothing_that_has_channels(costs):
    others = [c for c in costs["model"]["5,8"]["collectives"] if c[0] != "all-reduce"]
    assert all(math.prod(shape) <= 16 for _, shape, _ in others)


def test_the_bytes_of_a_step_are_those_of_the_formula(costs):
    """What is left besides coefficients, edges and nodes is the gradient of the weights."""
    found = costs["model"]["1024,8"]["collectives"]
    inside = [size for _, shape, size in found if N in shape or E in shape]
    assert sum(inside) == scaling.time_traffic(MODEL_SIZE)
    weights = 4 * costs["model"]["1024,8"]["num_weights"]
    assert weights == 4 * scaling.num_weights(MODEL_SIZE)
    # Kernels of convolutions have their whole gradient on every device.
    kernels = 4 * L * 2 * M * (C * C + 4)
    rest = sum(size for *_, size in found) - sum(inside)
    assert 0.9 * (weights - kernels) < rest < weights - kernels + 64


def test_the_memory_of_a_device_falls_with_the_time_axis(costs):
    whole, eighth = (costs["model"][f"1024,{n}"]["memory"] for n in (1, 8))
    assert whole / 8.8 < eighth < whole / 7.2


@pytest.mark.parametrize("num_shares", [1, 8])
def test_memory_and_operations_are_those_of_the_formulas(costs, num_shares):
    found = costs["model"][f"1024,{num_shares}"]
    expected = scaling.activation_bytes(MODEL_SIZE, num_shares)
    assert found["memory"] == pytest.approx(expected, rel=0.15)
    # XLA counts what is done element by element too.
    expected = scaling.step_flops(MODEL_SIZE, num_shares)
    assert expected < found["flops"] < 1.3 * expected


def test_the_model_of_a_step_adds_up():
    chip = scaling.CHIPS[0]
    size = scaling.EXAMPLE
    alone = scaling.step_seconds(size, chip, 4, 1, 1, 0.5)
    assert alone[1:] == (0, 0)
    assert scaling.step_seconds(size, chip, 4, 4, 1, 0.5)[0] == pytest.approx(alone[0] / 4)
    split = scaling.step_seconds(size, chip, 4, 1, 4, 0.5)
    longer = scaling.step_seconds(size._replace(times=2 * size.times), chip, 4, 1, 4, 0.5)
    assert longer[1] == split[1] and longer[0] > 1.9 * split[0]
