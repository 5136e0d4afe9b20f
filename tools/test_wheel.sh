#!/bin/sh
# Installs the wheel of a folder into a clean environment, with the core dependencies alone, and
# uses it from outside the repository.
#
#   test_wheel.sh DIST          (from the repository's root)
set -eu
dist=$(cd "$1" && pwd)
check=$(pwd)/tools/check_wheel.py
constraints=$(pwd)/constraints.txt
python=$(sh tools/find_python.sh)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$constraints" "$dist"/egno_jax-*.whl
cp "$check" "$folder/check_wheel.py"
cd "$folder"
env -u PYTHONPATH JAX_PLATFORMS=cpu "$folder/venv/bin/python" check_wheel.py "$dist"
