# Sets up the Python environment in .venv the first time. run_all.sh and run_tests.sh source this file. It sets
#   $root    the project folder
#   $python  the Python to use
# With FER_PYTHON=/path/to/python it uses that Python, for example conda's, and installs nothing.
# FER_TORCH=cpu or FER_TORCH=cuda says which PyTorch a new environment gets: without or with CUDA.
# All messages go to stderr.

root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
cpu_index=https://download.pytorch.org/whl/cpu # PyTorch for Linux without CUDA; PyPI has it with CUDA only

stop() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# Starts the Python instead of only looking for it, because a launcher such as pyenv's may have no Python behind it.
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

has_nvidia_gpu() {
    [ -e /dev/nvidiactl ] || nvidia-smi -L >/dev/null 2>&1 || /usr/lib/wsl/lib/nvidia-smi -L >/dev/null 2>&1
}

wants_cpu_torch() {
    [ "$(uname -s)" = Linux ] || return # elsewhere PyTorch has no CUDA anyway
    case ${FER_TORCH:-} in
        cpu) true ;;
        cuda) false ;;
        "") ! has_nvidia_gpu ;;
        *) stop "FER_TORCH=$FER_TORCH is neither cpu nor cuda; set it to one of these, or do not set it" ;;
    esac
}

has_cpu_torch() {
    local found
    for found in "$venv"/lib/python3*/site-packages/torch-*+cpu.dist-info; do [ -e "$found" ]; done
}

# Stops if fewer than $1 GB are free.
check_disk() {
    local gigabytes_needed=$1 free used
    free=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
    used=$(du -sk "$venv" 2>/dev/null | cut -f1)
    [ $((free + ${used:-0})) -ge $((gigabytes_needed * 1000000)) ] ||
        stop "the environment needs $gigabytes_needed GB of disk space, but only $((free / 1000000)) GB are free at" \
            "$root; free some space and run again"
}

make_venv() {
    local base
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        if command -v uv >/dev/null; then
            uv venv --quiet --seed --allow-existing --python '>=3.10,<3.13' "$venv" ||
                stop "uv could not create $venv, see above"
        else
            base=$(find_python) || exit
            "$base" -c 'import venv, ensurepip' 2>/dev/null ||
                stop "$base has no venv module; install it (Debian, Ubuntu: sudo apt install python3-venv)"
            "$base" -m venv "$venv" || stop "$venv could not be created, see above"
        fi
    fi
    is_supported "$venv/bin/python" ||
        stop "$venv does not have Python 3.10, 3.11 or 3.12; delete that folder and run again"
}

install() {
    if command -v uv >/dev/null; then
        uv pip install --quiet --python "$venv/bin/python" "$@"
    else
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

# Installs the packages of the lock file except those whose whole name matches $1.
install_all_but() {
    local lock=$venv/requirements.lock
    awk -v names="^($1)==" '/^[a-z]/ { keep = $0 !~ names } keep' "$root/requirements.lock" >"$lock" &&
        install --no-deps -r "$lock"
}

# The versions are those of the lock file. Its hashes are those of PyPI's packages.
install_cpu_torch() {
    local line packages=()
    while read -r line; do
        case $line in torch==* | torchvision==*) packages+=("${line% \\}") ;; esac
    done <"$root/requirements.lock"
    install --no-deps --index-url "$cpu_index" "${packages[@]}" &&
        "$venv/bin/python" -c 'import torch, torchvision'
}

# The lock file lists every package. With dependencies, pip would also install the second OpenCV that grad-cam asks for,
# which overwrites files of the first.
install_packages() {
    if ! wants_cpu_torch; then
        install --no-deps -r "$root/requirements.lock"
        return
    fi
    install_all_but 'torch|torchvision|triton|cuda-.*|nvidia-.*' || return
    if install_cpu_torch; then return; fi
    echo "${0##*/}: PyTorch without CUDA could not be installed, see above; installing PyPI's, which has CUDA..." >&2
    check_disk 7
    "$venv/bin/python" -m pip uninstall --quiet --yes torch torchvision 2>/dev/null
    install_all_but triton # only torch.compile on a GPU needs it
}

# While other programs use the cores, the threads of PyTorch would wait for each other by spinning, and so keep each other
# from working. A kernel has to know this before it imports PyTorch.
set_up_kernel() {
    "$venv/bin/python" -m ipykernel install --sys-prefix --env OMP_WAIT_POLICY PASSIVE >/dev/null ||
        stop "the Jupyter kernel could not be installed, see above"
}

# Lets git leave out what JupyterLab adds to a notebook when it saves it. .gitattributes says which notebooks. In a work
# tree without an environment, notebooks go to git as they are.
set_up_git_filter() {
    local key keys=()
    if [ ! -e "$root/.git" ] || ! command -v git >/dev/null; then return; fi
    for key in codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version; do
        keys+=("metadata.language_info.$key")
    done
    git -C "$root" config filter.nbstripout.clean "if [ -x .venv/bin/python ]; then
        .venv/bin/python -m nbstripout --keep-id --extra-keys '${keys[*]}'; else cat; fi" ||
        echo "${0##*/}: git could not be configured, see above; saved notebooks will show as changed" >&2
}

# Prints what a complete environment is made from, and for which folder.
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
        stop "$venv was created in another folder and cannot be moved; delete it and run again"
    fi
    check_platform
    if wants_cpu_torch; then
        check_disk 4
        echo "Setting up $venv without CUDA (the first time this takes a few minutes and downloads 1 GB)..." >&2
    else
        check_disk 8
        echo "Setting up $venv (the first time this takes a few minutes and downloads 3 GB)..." >&2
    fi
    rm -f "$venv/complete" # so that an interrupted installation does not look complete
    make_venv
    install_packages ||
        stop "the packages could not be installed, see above; check the network connection and run again"
    # Editable, so that JupyterLab and the runner import fer_utils from this folder.
    install --no-deps --no-build-isolation -e "$root" || stop "fer_utils could not be installed, see above"
    error=$("$venv/bin/python" -c 'import cv2' 2>&1) ||
        stop "OpenCV cannot be imported (${error##*$'\n'}); Debian, Ubuntu: sudo apt install libgl1 libglib2.0-0"
    set_up_kernel
    set_up_git_filter
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
        # If two scripts start at once, the second waits until the first has set up the environment. Without flock, as
        # on a Mac, it does not wait.
        (flock 9 2>/dev/null || true; is_set_up || set_up) 9<"${BASH_SOURCE[0]}" || exit
    fi
    if has_cpu_torch && ! wants_cpu_torch; then
        echo "${0##*/}: $venv has PyTorch without CUDA and computes on the CPU; to use an NVIDIA GPU, delete that" \
            "folder and run again (FER_TORCH=cpu keeps it)" >&2
    fi
fi
