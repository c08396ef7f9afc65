#!/usr/bin/env bash
# Lint, types, tests, in an environment of its own making. Types are checked beside the tests, which two processes share.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh test
python=.venv/bin/python
"$python" -m ruff check .
"$python" -m ruff format --check .
report=$(mktemp)
trap 'rm -f "$report"' EXIT
"$python" -m mypy >"$report" 2>&1 &
tests=0 types=0
"$python" -m pytest --numprocesses 2 --dist worksteal --durations 10 "$@" || tests=$?
wait $! || types=$?
cat "$report"
exit $((tests ? tests : types))
