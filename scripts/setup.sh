# Sourced by the scripts beside it: makes .venv with the package and one of its extras, unless that is done already. uv
# does it where it is installed, else pip.
# Usage: . scripts/setup.sh EXTRA, from the top of the project. PYTHON chooses the interpreter. TORCH=cpu installs
# PyTorch's CPU builds, which uv finds: a tenth of the download on Linux, and a fifth of the disk.

stop() {
    echo "setup: $1" >&2
    return 2
}

find_python() {
    local candidate found=""
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        found=${found:-$("$candidate" -c 'import sys; print("; %s is %d.%d" % (sys.argv[1], *sys.version_info[:2]))' \
            "$candidate" 2>/dev/null)}
    done
    stop "Python 3.11 or newer is needed$found: set PYTHON to one, or install uv, which fetches its own"
}

make_environment() {
    local python
    if command -v uv >/dev/null; then
        uv venv --quiet --clear --seed --python "${PYTHON:->=3.11,<3.15}" .venv
        return
    fi
    python=$(find_python) || return
    "$python" -c 'import venv' 2>/dev/null ||
        stop "$python has no module venv: install it (on Debian and Ubuntu python3-venv), or uv" || return
    "$python" -c 'import ensurepip' 2>/dev/null ||
        stop "$python has no pip to put into .venv: install ensurepip (on Debian and Ubuntu python3-venv), or uv" || return
    "$python" -m venv --clear .venv
}

# What is to be downloaded; measured on 2026-11-26 with torch 2.14.1, without what the extra test needs beside.
size() {
    case $(uname -s)-${TORCH:-} in
    Linux-cpu) echo "about 0.3 GB" ;;
    Linux-*) echo "about 3.1 GB, PyTorch with CUDA (without a GPU, TORCH=cpu needs 0.3 GB)" ;;
    *) echo "about 0.3 GB" ;;
    esac
}

setup() {
    local extra=$1 stamp wanted
    if ! [ -x .venv/bin/python ] || ! { command -v uv || .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
        make_environment || return
    fi
    stamp=.venv/installed-$extra
    wanted=$(pwd && echo "torch ${TORCH:-}" && cat pyproject.toml)
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    if command -v uv >/dev/null; then
        echo "uv installs resnet-train[$extra] into .venv: $(size)"
        uv pip install --quiet --python .venv/bin/python ${TORCH:+--torch-backend "$TORCH"} --editable ".[$extra]"
    else
        [ -z "${TORCH:-}" ] || stop "TORCH=$TORCH needs uv; or put torch and torchvision into .venv first, by the \
command of pytorch.org/get-started, and leave TORCH out" || return
        echo "pip installs resnet-train[$extra] into .venv: $(size)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
    fi || return
    echo "$wanted" >"$stamp"
}

setup "$1"
