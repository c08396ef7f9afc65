#!/usr/bin/env bash
# Lint, types, tests, in an environment of its own making. Types are checked beside the tests, which two processes share;
# so are the tests on a cluster, which wait for most of their time. Arguments go to pytest: with any, it is one test among the others.
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
    "$python" -m pytest tests/test_slurm.py tests/test_nodes.py -m cluster >"$reports/cluster" 2>&1 &
    beside+=($!)
    set -- -m "not cluster"
fi
code=0
"$python" -m pytest --numprocesses 2 --dist worksteal --durations 10 "$@" || code=$?
for process in "${beside[@]}"; do
    wait "$process" || code=$((code ? code : $?))
done
cat "$reports"/*
exit "$code"
