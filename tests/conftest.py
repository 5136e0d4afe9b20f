"""Settings of all tests: JAX's device and compilation, and the examples of hypothesis."""

import os
import pathlib
from importlib import metadata

# Tests run on the CPU by default; on a GPU: JAX_PLATFORMS=cuda pytest ...
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of the tests' time is spent in LLVM. At its lowest level, and with XLA's older generator of
# fusions (which jaxlib 0.10 still has), programs compile four times faster than by default. They
# have one LLVM module each, as what that generator rounds depends on how a program is split.
# Compiled programs are kept for later runs, other workers, and processes that tests start. Both are
# defaults, which XLA_FLAGS=... and JAX_ENABLE_COMPILATION_CACHE=false replace.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis

# No deadline, as a first call compiles. CI repeats the same examples, so that it fails only because
# of a change; elsewhere every run draws new ones.
hypothesis.settings.register_profile(
    "egno_jax",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("egno_jax")
