#!/bin/sh
# Collects the wheels that a Linux machine without network needs to run the project.
#
#   offline_wheels.sh FOLDER HAVE [PYTHON [REQUIREMENT ...]]     (from the repository's root)
#
# FOLDER       where the wheels go.
# HAVE         the machine's packages, from `pip list --format=freeze > HAVE` there.
# PYTHON       the machine's Python (default: 3.12).
# REQUIREMENT  what is needed in addition to the project (default: pina-mathlab, the benchmarks' peer).
#
# Then, on the machine:
#
#   pip install --no-index --find-links FOLDER egno_jax pina-mathlab
set -eu
if [ $# -lt 2 ]; then
    sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit 2
fi
folder=$1 have=$2 python=${3:-3.12}
shift 2
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- pina-mathlab

host=$(sh tools/find_python.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$host" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --upgrade pip
mkdir -p "$folder" "$work/have"
rm -f "$folder"/egno_jax-*.whl
pip wheel --quiet --no-deps --wheel-dir "$folder" .

target="--only-binary=:all: --implementation cp --python-version $python"
for tag in _2_39 _2_35 _2_34 _2_31 _2_28 _2_27 _2_24 _2_17 2014 2010 1; do
    target="$target --platform manylinux${tag}_x86_64"
done
# Empty wheels stand in for the machine's packages, so that pip resolves as it would there.
"$work/venv/bin/python" tools/stand_ins.py make "$have" "$work/have" >"$work/constraints.txt"
# shellcheck disable=SC2086
pip install --quiet --dry-run --ignore-installed --target "$work/none" $target \
    --find-links "$work/have" --constraint "$work/constraints.txt" \
    --report "$work/report.json" "$folder"/egno_jax-*.whl "$@"
"$work/venv/bin/python" tools/stand_ins.py others "$work/report.json" >"$work/wanted.txt"
# shellcheck disable=SC2086
[ ! -s "$work/wanted.txt" ] ||
    pip download --quiet --no-deps $target --dest "$folder" --requirement "$work/wanted.txt"
du -sh "$folder"
ls "$folder"
