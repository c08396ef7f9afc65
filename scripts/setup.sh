# Sourced by the scripts beside it: makes .venv with the package and one of its extras, unless that is done already.
# Usage: . scripts/setup.sh EXTRA, from the top of the project. PYTHON chooses the interpreter.

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed; set PYTHON to one" >&2
    return 1
}

setup() {
    local extra=$1 python stamp wanted
    if ! [ -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        "$python" -m venv --clear .venv
    fi
    stamp=.venv/installed-$extra
    wanted=$(pwd && cat pyproject.toml)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing resnet-train[$extra] into .venv (torch is large: a minute or more)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
        echo "$wanted" >"$stamp"
    fi
}

setup "$1"
