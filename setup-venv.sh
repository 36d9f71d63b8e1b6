#!/bin/sh
# Builds .venv with pinned dependencies, once: a stamp in it names what it was built from.
# Called by the Makefile; PYTHON and TORCH_INDEX_URL are described there.
set -eu
cd "$(dirname "$0")"

stamp=".venv/built-from-$({ pwd; cat pyproject.toml constraints.txt setup-venv.sh; } | cksum | tr -dc '0-9')"
[ -e "$stamp" ] && exit 0

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# The machine's own python3 first: wheels may lie ready for it.
find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13; do
        if new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
        [ -z "${PYTHON:-}" ] || break
    done
}

python=$(find_python)
if [ -z "$python" ]; then
    found=$("${PYTHON:-python3}" --version 2>&1) || found="none"
    echo "Celora needs Python 3.11 or newer; found: $found" >&2
    echo "  What to do: install one (apt-get install python3, or https://www.python.org)," >&2
    echo "  or name it: make PYTHON=/path/to/python3.12 …" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$("$python" --version) cannot make virtual environments: its venv module is missing." >&2
    echo "  What to do: apt-get install python3-venv (as root), then run make again." >&2
    exit 1
fi

# A moved folder, or another Python: the programs in .venv/bin hold the old paths.
if [ -e .venv/home ] && [ "$(cat .venv/home)" != "$(pwd) $("$python" --version)" ]; then
    rm -rf .venv
fi
[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv
printf '%s %s\n' "$(pwd)" "$("$python" --version)" >.venv/home
rm -f .venv/built-from-*

log=.venv/setup.log
echo "Setting up .venv with $("$python" --version), once (a few minutes; log in $log) …"
started=$(date +%s)
pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off \
        -c constraints.txt "$@" >>"$log" 2>&1 || {
        tail -n 25 "$log" >&2
        echo "pip failed; the whole log is in $log" >&2
        exit 1
    }
}
: >"$log"
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    pip_install --index-url "$TORCH_INDEX_URL" torch
fi
pip_install -e '.[train,flower,track,report,api,notify,dev]'
: >"$stamp"
echo "Ready after $(($(date +%s) - started)) s."
