#!/usr/bin/env bash
# Sets up the environment if needed, checks the style with ruff, and runs the tests with pytest.
# Arguments go to pytest, for example ./run_tests.sh -k data. Without arguments the script first installs Ray and, where
# it can, a browser, so that no test is skipped; then two processes share the files with tests.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"

# Installs Debian's Chromium if there is no browser. This needs Debian and root; elsewhere the tests that use a browser
# are skipped and say so.
install_browser() {
    if [ -n "${FER_BROWSER:-}" ] || command -v chromium chromium-browser google-chrome >/dev/null; then return; fi
    if [ "$(id -u 2>/dev/null)" != 0 ] || ! command -v apt-get >/dev/null; then return; fi
    echo "run_tests.sh: installing Chromium with apt-get for the browser tests (only this time)..." >&2
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq --no-install-recommends install chromium; } >&2 ||
        echo "run_tests.sh: Chromium could not be installed, see above; the browser tests are skipped" >&2
}

# Installs Ray (80 MB), which only training on several machines needs. Without it its tests are skipped and say so.
install_ray() {
    if [ -n "${FER_PYTHON:-}" ] || "$python" -c 'import ray' 2>/dev/null; then return; fi
    echo "run_tests.sh: installing Ray for the cluster tests (only this time)..." >&2
    install ray==2.60.0 || echo "run_tests.sh: Ray could not be installed, see above; the cluster tests are skipped" >&2
}

if [ $# = 0 ]; then
    install_browser
    install_ray
    set -- -n 2 --dist loadfile --no-loadscope-reorder
fi

style=0
"$python" -m ruff check fer_utils tests benchmarks docs notebooks || style=$?
"$python" -m ruff format --check fer_utils tests benchmarks docs notebooks || style=$?
[ "$style" = 0 ] || echo "run_tests.sh: ruff found problems, see above; the tests run anyway" >&2

tests=0
"$python" -m pytest "$@" || tests=$?
[ "$tests" != 0 ] || exit "$style"
exit "$tests"
