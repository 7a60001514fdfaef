#!/usr/bin/env bash
# Sets up the environment if needed, then checks the style and runs the tests. Arguments go to pytest:
# ./run_tests.sh -k data
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"

style=0
"$python" -m ruff check fer_utils tests benchmarks notebooks || style=$?
"$python" -m ruff format --check fer_utils tests benchmarks notebooks || style=$?
[ "$style" = 0 ] || echo "run_tests.sh: ruff found something, see above; the tests run all the same" >&2

tests=0
"$python" -m pytest "$@" || tests=$?
[ "$tests" != 0 ] || exit "$style"
exit "$tests"
