#!/bin/sh
# Find a Python that can set this project up and run it: sh scripts/python.sh SCRIPT [ARGUMENT ...]
# $PYTHON is taken where it is set. Otherwise the first of the names below that is new enough and can make virtual
# environments. What is missing is said in one line on stderr, with exit code 1.
set -u

names="python3.13 python3.12 python3.11 python3 python"
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
can_make_venv='import venv, ensurepip'

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

answers() {
    "$1" -S -c "$2" </dev/null >/dev/null 2>&1
}

version_of() {
    "$1" -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null
}

no_venv() {
    fail "$1 cannot make virtual environments: its venv module is missing (Debian and Ubuntu: apt install python$(version_of "$1")-venv)"
}

if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null 2>&1 || fail "PYTHON=$PYTHON does not exist: give the path of a Python 3.11 or newer"
    found=$(version_of "$PYTHON")
    answers "$PYTHON" "$new_enough" || fail "PYTHON=$PYTHON is Python ${found:-of an unknown version}: 3.11 or newer is needed"
    answers "$PYTHON" "$can_make_venv" || no_venv "$PYTHON"
    exec "$PYTHON" "$@"
fi

without_venv=
for name in $names; do
    answers "$name" "$new_enough" || continue
    if answers "$name" "$can_make_venv"; then
        exec "$name" "$@"
    fi
    without_venv=${without_venv:-$name}
done
[ -z "$without_venv" ] || no_venv "$without_venv"
found=$(version_of python3)
fail "no Python 3.11 or newer found${found:+ (python3 is $found)}: install one, or name it with PYTHON=/path/to/python"
