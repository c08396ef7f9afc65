#!/usr/bin/env bash
# Lint, types, tests, in an environment of its own making. Types are checked beside the tests, which two processes share;
# so is the Slurm test, which waits for most of its time. Arguments go to pytest: with any, it is one test among the others.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh test
python=.venv/bin/python
"$python" -m ruff check .
"$python" -m ruff format --check .
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
"$python" -m mypy >"$reports/types" 2>&1 &
beside=($!)
if [ $# = 0 ]; then
    "$python" -m pytest tests/test_slurm.py -m slurm >"$reports/slurm" 2>&1 &
    beside+=($!)
    set -- -m "not slurm"
fi
code=0
"$python" -m pytest --numprocesses 2 --dist worksteal --durations 10 "$@" || code=$?
for process in "${beside[@]}"; do
    wait "$process" || code=$((code ? code : $?))
done
cat "$reports"/*
exit "$code"
