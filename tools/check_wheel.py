"""Checks a wheel and uses it; run by test_wheel.sh, in a clean environment."""

import importlib
import importlib.metadata
import importlib.util
import pathlib
import sys
import tarfile
import zipfile

# Packages of the extras that no core dependency brings along (rich comes with Flax).
EXTRAS = ("ase", "grain", "matplotlib", "plotly", "pooch", "tensorboardX", "tyro", "vesin")


def check_archives(dist: pathlib.Path) -> None:
    """Looks into the wheel and the sdist: what must be there, and what must not."""
    (wheel,) = dist.glob("egno_jax-*.whl")
    (sdist,) = dist.glob("egno_jax-*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    assert "egno_jax/py.typed" in inside, inside
    strange = {name.split("/")[0] for name in inside if not name.startswith("egno_jax")}
    assert not strange, f"the wheel holds more than egno_jax: {strange}"
    with tarfile.open(sdist) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    sources = ("egno_jax", "tests", "docs", "experiments", "benchmarks")
    expected = {name for name in sources if any(dist.parent.glob(f"{name}/*.py"))}
    missing = (expected | {"LICENSE", "README.md", "constraints.txt", "Makefile"}) - folders
    assert not missing, f"the sdist lacks {missing}"


def check_environment() -> None:
    """Makes sure that the extras are absent, so that the imports below prove something."""
    present = [name for name in EXTRAS if importlib.util.find_spec(name) is not None]
    assert not present, f"the environment is not clean, it has {present}"


def check_use() -> None:
    """Imports every public module and evaluates a small model."""
    import egno_jax

    where = pathlib.Path(egno_jax.__file__).parent
    assert where.is_relative_to(sys.prefix), f"imported from {where}, not from the wheel"
    assert (where / "py.typed").is_file()
    assert egno_jax.__version__ == importlib.metadata.version("egno_jax")
    for name in ("ops", "nn", "graph", "metrics", "training", "datasets"):
        importlib.import_module(f"egno_jax.{name}")

    import jax
    import jax.numpy as jnp
    import jraph

    keys = jax.random.split(jax.random.key(0), 4)
    graph = jraph.GraphsTuple(
        nodes={
            "positions": jax.random.normal(keys[0], (3, 3)),
            "velocities": jax.random.normal(keys[1], (3, 3)),
            "features": jax.random.normal(keys[2], (3, 1)),
        },
        edges=None,
        senders=jnp.array([0, 1, 1, 2]),
        receivers=jnp.array([1, 0, 2, 1]),
        n_node=jnp.array([3]),
        n_edge=jnp.array([4]),
        globals=None,
    )
    times = jnp.arange(1.0, 6.0)
    config = egno_jax.EGNOConfig(num_layers=2, hidden_dim=8, num_modes=2, time_embed_dim=8)
    params = egno_jax.init(keys[3], config, graph, times)
    trajectory = jax.jit(egno_jax.apply)(params, graph, times)
    assert trajectory.positions.shape == (5, 3, 3)
    assert bool(jnp.isfinite(trajectory.positions).all())
    print(f"egno_jax {egno_jax.__version__} works from its wheel with jax {jax.__version__}")


if __name__ == "__main__":
    check_archives(pathlib.Path(sys.argv[1]))
    check_environment()
    check_use()
