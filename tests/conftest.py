"""Settings of every test: where JAX runs, and how hypothesis searches."""

import os

# Tests run on the CPU unless told otherwise: JAX_PLATFORMS=cuda pytest ...
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis

# No deadline: a first call compiles. CI repeats the same examples, so that it fails only for what
# was changed; elsewhere every run searches anew.
hypothesis.settings.register_profile(
    "egno_jax",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("egno_jax")
