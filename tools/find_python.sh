#!/bin/sh
# Prints the path of a Python for the project's environment.
#
#   find_python.sh             the best there is: 3.11, 3.12, 3.13, else any later one
#   find_python.sh 3.13        that version, from wherever it is installed
#   PYTHON=... find_python.sh  that interpreter, if it is suitable
#
# A candidate must have the version and venv: a name on PATH may be a shim without an interpreter,
# or a system Python without venv. Exits with 1 if there is none.
set -u
wanted=${1:-}

usable() {
    "$1" - "$wanted" >/dev/null 2>&1 <<'PYTHON'
import sys
import ensurepip, venv  # left out of some system Pythons

wanted = sys.argv[1]
version = "%d.%d" % sys.version_info[:2]
sys.exit(sys.version_info < (3, 11) or (wanted != "" and version != wanted))
PYTHON
}

accept() {
    usable "$1" && "$1" -c 'import sys; print(sys.executable)'
}

if [ -n "${PYTHON:-}" ] && [ -z "$wanted" ]; then
    accept "$PYTHON" && exit 0
    echo "PYTHON=$PYTHON is not a Python >= 3.11 with the venv module." >&2
    exit 1
fi

for version in ${wanted:-3.11 3.12 3.13}; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python \
        "/usr/bin/python$version" "/usr/local/bin/python$version" "/opt/homebrew/bin/python$version"; do
        accept "$candidate" && exit 0
    done
done
for candidate in python3 python; do
    accept "$candidate" && exit 0
done
if [ -z "$wanted" ]; then
    echo "No Python >= 3.11 with the venv module was found." >&2
    echo "Install one (on Debian or Ubuntu: apt-get install python3 python3-venv)," >&2
    echo "or name one: make PYTHON=/path/to/python3.11 ..." >&2
fi
exit 1
