# Sets up the Python environment in .venv, once. Sourced by run_all.sh and run_tests.sh, which then find
#   $root    the project's folder
#   $python  the Python to use
# FER_PYTHON=/path/to/python uses that environment as it is (conda's, for example) and sets up nothing.
# All messages go to stderr.

root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
gigabytes_needed=8

stop() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# Tried, not just looked for: a launcher such as pyenv's may have no Python behind it.
is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.10 python3; do
        is_supported "$candidate" && echo "$candidate" && return
    done
    stop "no Python 3.10, 3.11 or 3.12 was found; install one (Debian, Ubuntu: sudo apt install python3 python3-venv)"
}

check_platform() {
    [ "$(uname -sm)" != "Darwin x86_64" ] ||
        stop "PyTorch no longer has packages for Macs with Intel processors; use Apple silicon, Linux or WSL"
}

check_disk() {
    local free used
    free=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
    used=$(du -sk "$venv" 2>/dev/null | cut -f1)
    [ $((free + ${used:-0})) -ge $((gigabytes_needed * 1000000)) ] ||
        stop "the environment needs $gigabytes_needed GB and $root has $((free / 1000000)) GB free; make room and run again"
}

make_venv() {
    local base
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        if command -v uv >/dev/null; then
            uv venv --quiet --seed --allow-existing --python '>=3.10,<3.13' "$venv" ||
                stop "uv could not make $venv, see above"
        else
            base=$(find_python) || exit
            "$base" -c 'import venv, ensurepip' 2>/dev/null ||
                stop "$base has no venv module; install it (Debian, Ubuntu: sudo apt install python3-venv)"
            "$base" -m venv "$venv" || stop "$venv could not be made, see above"
        fi
    fi
    is_supported "$venv/bin/python" || stop "$venv has a Python outside 3.10-3.12; delete that folder and run again"
}

install() {
    if command -v uv >/dev/null; then
        uv pip install --quiet --python "$venv/bin/python" "$@"
    else
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

# What a complete environment was made from, and where.
marker() {
    echo "$root"
    cat "$root/requirements.lock" "$root/pyproject.toml" | cksum
}

is_set_up() {
    [ "$(cat "$venv/complete" 2>/dev/null)" = "$(marker)" ]
}

set_up() {
    local error
    if [ -e "$venv/complete" ] && [ "$(head -n 1 "$venv/complete")" != "$root" ]; then
        stop "$venv was made in another folder and does not survive being moved; delete it and run again"
    fi
    check_platform
    check_disk
    echo "Setting up $venv (the first time: some minutes, 3 GB to download)..." >&2
    rm -f "$venv/complete" # an interrupted installation must not look complete
    make_venv
    # The lock names all that is needed. grad-cam also asks for a second OpenCV, which would overwrite files of the first.
    install --no-deps -r "$root/requirements.lock" ||
        stop "the packages could not be installed, see above; check the network connection and run again"
    # Editable: JupyterLab and the runner both import fer_utils from this folder.
    install --no-deps --no-build-isolation -e "$root" || stop "fer_utils could not be installed, see above"
    error=$("$venv/bin/python" -c 'import cv2' 2>&1) ||
        stop "OpenCV cannot be loaded (${error##*$'\n'}); Debian, Ubuntu: sudo apt install libgl1 libglib2.0-0"
    marker >"$venv/complete"
    echo "The environment is ready." >&2
}

if [ -n "${FER_PYTHON:-}" ]; then
    python=$FER_PYTHON
    "$python" -I -c 'import fer_utils, os, sys; sys.exit(not os.path.samefile(fer_utils.__path__[0], sys.argv[1]))' \
        "$root/fer_utils" 2>/dev/null ||
        stop "FER_PYTHON=$python does not have this project's fer_utils; run: $python -m pip install --no-deps -r" \
            "'$root/requirements.lock' && $python -m pip install --no-deps -e '$root'"
else
    python=$venv/bin/python
    if ! is_set_up; then
        # Of two first calls at once the second waits, where there is flock (not on a Mac), and then has nothing to do.
        (flock 9 2>/dev/null || true; is_set_up || set_up) 9<"${BASH_SOURCE[0]}" || exit
    fi
fi
