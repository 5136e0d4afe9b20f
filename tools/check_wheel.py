"""Checks a wheel and uses it; run by test_wheel.sh, in a clean environment."""

import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from typing import Any

# Packages of the extras that no core dependency brings along (rich comes with Flax).
EXTRAS = (
    "MDAnalysis",
    "ase",
    "grain",
    "matplotlib",
    "plotly",
    "pooch",
    "tensorboardX",
    "tyro",
    "vesin",
)
KERNEL_SOURCES = "egno_jax/ops/kernels"
# Tolerance of two computations in float32, relative to the largest number.
TOLERANCE = 1e-5


def check_archives(dist: pathlib.Path) -> None:
    """Checks the contents of the wheel and the sdist."""
    (wheel,) = dist.glob("egno_jax-*.whl")
    (sdist,) = dist.glob("egno_jax-*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    assert "egno_jax/py.typed" in inside, inside
    headers = [name for name in inside if name.startswith(KERNEL_SOURCES) and name.endswith(".h")]
    sources = [name for name in inside if name.startswith(KERNEL_SOURCES) and name.endswith(".cc")]
    assert headers, f"the wheel has no headers in {KERNEL_SOURCES}: {inside}"
    assert sources, f"the wheel has no C++ source in {KERNEL_SOURCES}: {inside}"
    models = {name for name in inside if name.startswith("egno_jax/published/")}
    cards = {name for name in models if name.endswith(".json")}
    assert cards, f"the wheel has no published models: {inside}"
    lost = {name.replace(".json", ".npz") for name in cards} - models
    assert not lost, f"the wheel lacks the weights {sorted(lost)}"
    strange = {name.split("/")[0] for name in inside if not name.startswith("egno_jax")}
    assert not strange, f"the wheel holds more than egno_jax: {strange}"
    with tarfile.open(sdist) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if "/" in name}
        lost = absent_pictures(archive)
    assert not lost, f"the sdist lacks pictures that its pages show: {sorted(lost)}"
    sources = ("egno_jax", "tests", "docs", "experiments", "benchmarks")
    expected = {name for name in sources if any(dist.parent.glob(f"{name}/*.py"))}
    missing = (expected | {"LICENSE", "README.md", "constraints.txt", "Makefile"}) - folders
    assert not missing, f"the sdist lacks {missing}"


def absent_pictures(archive: tarfile.TarFile) -> set[str]:
    """Returns the pictures that an archive's Markdown pages show and that it does not hold."""
    names, shown = set(archive.getnames()), set()
    for page in (name for name in names if name.endswith(".md")):
        text = archive.extractfile(page).read().decode()
        addresses = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text)
        shown |= {
            posixpath.normpath(posixpath.join(posixpath.dirname(page), address))
            for address in addresses
            if "://" not in address
        }
    return shown - names


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

    trajectory = evaluate(width=8)
    assert trajectory.positions.shape == (5, 3, 3)
    assert all(bool(jax.numpy.isfinite(leaf).all()) for leaf in jax.tree.leaves(trajectory))
    print(f"egno_jax {egno_jax.__version__} works from its wheel with jax {jax.__version__}")


def evaluate(width: int) -> Any:
    """Evaluates a small model with this many channels."""
    import jax
    import jax.numpy as jnp
    import jraph

    import egno_jax

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
    config = egno_jax.EGNOConfig(num_layers=2, hidden_dim=width, num_modes=2, time_embed_dim=8)
    params = egno_jax.init(keys[3], config, graph, times)
    return jax.jit(egno_jax.apply)(params, graph, times)


# The CPU kernels: each way of loading them needs a process of its own.


def check_kernels() -> None:
    """Compares the model with its kernels and, where there is no compiler, without."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        nowhere = {"CXX": str(folder / "no-such-compiler"), "PATH": ""}
        plain = in_process(folder / "plain", "auto", **nowhere)
        assert not plain["is_loaded"], plain["reason"]
        nothing = in_process(folder / "nothing", "auto", CXX="", PATH="")
        assert not nothing["is_loaded"], nothing["reason"]
        assert "compiler" in str(nothing["reason"]), nothing["reason"]
        assert_close(nothing, plain)
        compilers = [os.environ.get("CXX"), *map(shutil.which, ("c++", "g++", "clang++"))]
        if not any(compilers):
            print("no C++ compiler here: the kernels were not built")
            return
        fast = in_process(folder / "kernels", "require")
        assert fast["is_loaded"]
        assert pathlib.Path(str(fast["reason"])).is_relative_to(folder / "kernels"), fast["reason"]
        assert_close(fast, plain)
    print("its CPU kernels are built from the wheel, and give what JAX's formulas give without")


def in_process(cache: pathlib.Path, kernels: str, **environment: str) -> dict:
    """Evaluates a model that the kernels can compute, in a new process.

    Args:
      cache: a folder for what is compiled, new.
      kernels: `EGNO_JAX_KERNELS`.
      **environment: further variables.

    Returns:
      What came out, as NumPy's arrays: the trajectory, `is_loaded` and `reason`.
    """
    import numpy as np

    cache.mkdir()
    result = cache / "result.npz"
    variables = {"EGNO_CACHE_DIR": str(cache), "EGNO_JAX_KERNELS": kernels, **environment}
    command = [sys.executable, __file__, "--evaluate", str(result)]
    subprocess.run(command, env=os.environ | variables, check=True)
    with np.load(result) as stored:
        return dict(stored)


def save_evaluation(path: str) -> None:
    """Evaluates the model and writes what `in_process` returns."""
    import jax
    import numpy as np

    from egno_jax.ops import kernels

    trajectory = evaluate(width=16)
    names = [jax.tree_util.keystr(key) for key, _ in jax.tree.leaves_with_path(trajectory)]
    arrays = dict(zip(names, map(np.asarray, jax.tree.leaves(trajectory)), strict=True))
    np.savez(path, **arrays, **kernels.load()._asdict())


def assert_close(found: dict, expected: dict) -> None:
    """Asserts that two evaluations agree to float32's rounding."""
    import numpy as np

    assert found.keys() == expected.keys()
    for name in found.keys() - {"is_loaded", "reason"}:
        error = np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
        assert error < TOLERANCE, f"{name}: relative difference {error:.2g}"


if __name__ == "__main__":
    if sys.argv[1] == "--evaluate":
        save_evaluation(sys.argv[2])
        sys.exit()
    check_archives(pathlib.Path(sys.argv[1]))
    check_environment()
    check_use()
    check_kernels()
