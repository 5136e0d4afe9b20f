#!/bin/sh
# Runs the core tests with the oldest dependencies that setup.cfg allows and with the newest ones, on
# the oldest and the newest supported Python of this machine. The newest environment has XLA's compiler
# for TPU too, so that programs are compiled for TPUs (tests/benchmarks/test_compiled.py), and JAX MD.
#
#   test_versions.sh [WORKERS]  (from the repository's root)
#
# The environments are in .venvs/; each run updates them.
set -eu
workers=${1:-2}
status=0

# core_tests NAME PYTHON PROJECT REQUIREMENT...
core_tests() {
    name=$1
    python=$2
    project=$3
    shift 3
    venv=.venvs/$name
    "$venv/bin/python" -c 'import pip' >/dev/null 2>&1 ||
        "$python" -m venv --clear "$venv" || return 1
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
        --upgrade-strategy eager "$@" --editable "$project" pytest pytest-xdist hypothesis ||
        return 1
    echo "== $name: $("$venv/bin/python" -c '
import importlib.metadata as metadata, platform
names = "jax jaxlib flax optax jraph e3nn-jax orbax-checkpoint chex numpy".split()
print("Python", platform.python_version(), *(f"{n}=={metadata.version(n)}" for n in names))')"
    # Deprecations in versions other than the pinned ones are no errors.
    pytest="$venv/bin/python -m pytest -n $workers --dist loadfile -o filterwarnings=default"
    pytest="$pytest --disable-pytest-warnings"
    # What the model is made of is tested with programs that are optimized as for users, the rest
    # with those that compile quickly (tests/conftest.py).
    optimized="tests/ops tests/benchmarks/test_compiled.py"
    failed=0
    XLA_FLAGS="" $pytest $optimized || failed=1
    $pytest --ignore=tests/experiments $(printf -- '--ignore=%s ' $optimized) || failed=1
    return $failed
}

if python=$(sh tools/find_python.sh 3.11); then
    core_tests oldest "$python" . $("$python" tools/lower_bounds.py) || status=1
else
    echo "== oldest: skipped, there is no Python 3.11"
fi

for version in 3.13 3.12; do
    if python=$(sh tools/find_python.sh "$version"); then
        core_tests newest "$python" ".[aot-tpu,jax-md]" || status=1
        exit $status
    fi
done
echo "== newest: skipped, there is no Python 3.12 or 3.13"
exit $status
