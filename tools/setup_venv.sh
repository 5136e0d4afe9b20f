#!/bin/sh
# Creates or updates the project's environment; quick if there is nothing to do.
#
#   setup_venv.sh DIRECTORY     (from the repository's root)
#
# The stamp in the environment is a checksum of the files that define it. After an interrupted run
# the next one starts again from scratch.
set -eu
venv=$1
extras=experiments,docs,test
stamp=$venv/.stamp
unfinished=$venv/.unfinished

# The path is in it because environments cannot be moved or copied.
wanted="$(cat pyproject.toml setup.cfg constraints.txt tools/setup_venv.sh | cksum) $(pwd)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] &&
    "$venv/bin/python" -c '' >/dev/null 2>&1; then
    exit 0
fi
rm -f "$stamp"

if [ -f "$unfinished" ] ||
    ! "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$(sh tools/find_python.sh)
    echo "Making $venv with $python"
    "$python" -m venv --clear "$venv"
fi
touch "$unfinished"
echo "Installing egno_jax[$extras] into $venv, pinned by constraints.txt"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".[$extras]"
echo "$wanted" >"$stamp"
rm "$unfinished"
