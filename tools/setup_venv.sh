#!/bin/sh
# Makes the project's environment, or brings it up to date; quick when there is nothing to do.
#
#   setup_venv.sh DIRECTORY     (from the repository's root)
#
# The stamp in the environment holds a checksum of all that decides what is in it, and is
# written last: a run that was interrupted leaves no stamp, and the next one finishes the work.
set -eu
venv=$1
extras=experiments,docs,test
stamp=$venv/.egno-stamp

wanted=$(cat pyproject.toml setup.cfg constraints.txt tools/setup_venv.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] &&
    "$venv/bin/python" -c 'import jax, flax, pytest' >/dev/null 2>&1; then
    exit 0
fi
rm -f "$stamp"

if ! "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    python=$(sh tools/find_python.sh)
    echo "Making $venv with $python"
    "$python" -m venv --clear "$venv"
fi
echo "Installing egno_jax[$extras] into $venv, pinned by constraints.txt"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".[$extras]"
echo "$wanted" >"$stamp"
