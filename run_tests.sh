#!/usr/bin/env bash
# Sets up the environment if needed, then checks the style and runs the tests. Arguments go to pytest:
# ./run_tests.sh -k data. Without arguments a missing browser is installed, where that can be done, and Ray.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"

# Debian's Chromium, if this is Debian, we are root, and there is no browser. Tests that miss one are skipped and say so.
install_browser() {
    if [ -n "${FER_BROWSER:-}" ] || command -v chromium chromium-browser google-chrome >/dev/null; then return; fi
    if [ "$(id -u 2>/dev/null)" != 0 ] || ! command -v apt-get >/dev/null; then return; fi
    echo "run_tests.sh: installing Chromium for the tests in a browser (apt-get, once)..." >&2
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq --no-install-recommends install chromium; } >&2 ||
        echo "run_tests.sh: Chromium could not be installed, see above; the tests in a browser are skipped" >&2
}

# Ray (80 MB), which only training on several machines needs. Tests that miss it are skipped and say so.
install_ray() {
    if [ -n "${FER_PYTHON:-}" ] || "$python" -c 'import ray' 2>/dev/null; then return; fi
    echo "run_tests.sh: installing Ray for the tests of a cluster (once)..." >&2
    install ray==2.60.0 || echo "run_tests.sh: Ray could not be installed, see above; its tests are skipped" >&2
}
if [ $# = 0 ]; then
    install_browser
    install_ray
fi

style=0
"$python" -m ruff check fer_utils tests benchmarks notebooks || style=$?
"$python" -m ruff format --check fer_utils tests benchmarks notebooks || style=$?
[ "$style" = 0 ] || echo "run_tests.sh: ruff found something, see above; the tests run all the same" >&2

tests=0
"$python" -m pytest "$@" || tests=$?
[ "$tests" != 0 ] || exit "$style"
exit "$tests"
