"""run_all.sh, run_demo.sh, run_tests.sh and setup_env.sh, with stand-ins for every command that they call."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fer_utils.pipeline.provenance import code_state

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")  # one requirement a line
REQUIREMENTS = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
TOOLS = [
    *("bash", "env", "dirname", "cat", "head", "cksum", "df", "du", "awk", "cut", "rm", "mkdir", "cp", "flock", "sleep")
]
# Answers as a Python would, and writes down what it was called for. Variables make single answers fail.
PYTHON = """\
#!/usr/bin/env bash
echo "${0##*/} $*" >>"$CALLS"
case "$*" in
    "-c import sys; sys.exit(not (3, 10)"*) exit "${OLD_PYTHON:-0}" ;;
    "-c import venv, ensurepip") exit "${NO_VENV:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip --version") exit 0 ;;
    "-m pip install "*" --index-url "*) exit "${NO_CPU_INDEX:-0}" ;;
    "-m pip install "*) sleep "${PIP_SECONDS:-0}"; [ -z "${KILLED:-}" ] || kill -9 $PPID; exit "${PIP_FAILS:-0}" ;;
    "-m ipykernel install "*) exit 0 ;;
    "-m pip uninstall "*) exit 0 ;;
    "-c import torch, torchvision") exit "${BROKEN_TORCH:-0}" ;;
    "-c import cv2") [ -z "${NO_LIBGL:-}" ] || { echo "ImportError: libGL.so.1: no such file" >&2; exit 1; } ;;
    "-c import ray") exit "${NO_RAY:-0}" ;;
    "-I -c import fer_utils"*) exit "${NO_FER_UTILS:-0}" ;;
    "-m ruff "*) echo "ruff says"; exit "${RUFF:-0}" ;;
    "-m pytest"*) echo "in $PWD"; printf '<%s>' "${@:3}"; exit "${PYTEST:-0}" ;;
    "-I -m fer_utils.pipeline"*) printf '<%s>' "${@:4}"; exit "${PIPELINE:-0}" ;;
    "-I -m fer_utils.cli webcam"*) printf '<%s>' "${@:5}"; exit "${WEBCAM:-0}" ;;
    *) echo "not expected: $*" >&2; exit 99 ;;
esac
"""
TINY_LOCK = """\
# made by uv
numpy==1.26.4 \\
    --hash=sha256:1
    # via torch
nvidia-cublas==13.4.1.3 ; sys_platform == 'linux' \\
    --hash=sha256:2
torch==2.14.1 ; python_full_version < '3.11' \\
    --hash=sha256:3
torch==2.15.0 ; python_full_version >= '3.11' \\
    --hash=sha256:4
torchvision==0.29.2 \\
    --hash=sha256:5
triton==3.9.0 ; sys_platform == 'linux' \\
    --hash=sha256:6
"""
CPU_INDEX = "--index-url https://download.pytorch.org/whl/cpu"
UV = """\
#!/usr/bin/env bash
echo "uv $*" >>"$CALLS"
[ "$1" != venv ] || { mkdir -p "${@: -1}/bin" && cp "${0%/*}/python3.11" "${@: -1}/bin/python"; }
"""


class Machine:
    """A bare machine: a project folder, and a PATH with nothing but what the scripts may count on."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "Prüf Ordner"
        self.bin = folder / "bin"
        self.calls_file = folder / "calls.txt"
        self.root.mkdir()
        self.bin.mkdir()
        for name in ("run_all.sh", "run_demo.sh", "run_tests.sh", "setup_env.sh"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "requirements.lock").write_text(TINY_LOCK)
        (self.root / "pyproject.toml").write_text("[project]\n")
        for tool in filter(shutil.which, TOOLS):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.command("df", "#!/usr/bin/env bash\necho header\necho disk 1 1 ${FREE_KB:-99000000} 1%")
        self.command(
            "uname", "#!/usr/bin/env bash\n[ $1 = -s ] && echo ${SYSTEM:-Linux} || echo ${SYSTEM:-Linux} arm64"
        )
        self.command("python3.11", PYTHON)

    def command(self, name: str, script: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self.root / script, *arguments],
            cwd="/",
            env={"PATH": str(self.bin), "CALLS": str(self.calls_file), "FER_TORCH": "cuda", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a script."""
        process = self.start(script, *arguments, **variables)
        output, error = process.communicate(timeout=30)
        return process.returncode, output, error

    def calls(self) -> list[str]:
        """What Python was called for since the last time this was asked."""
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return calls


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_first_call_sets_up_and_the_second_does_not(machine: Machine) -> None:
    code, output, error = machine.run("run_all.sh", "--data", "my data/archive.zip")
    assert (code, output) == (0, "<--data><my data/archive.zip>")
    assert "Setting up" in error
    installs = [call for call in machine.calls() if " install" in call]
    pip = "python -m pip install --quiet --disable-pip-version-check"
    assert installs == [
        f"{pip} --no-deps -r {machine.root}/requirements.lock",
        f"{pip} --no-deps --no-build-isolation -e {machine.root}",
        "python -m ipykernel install --sys-prefix --env OMP_WAIT_POLICY PASSIVE",
    ]
    assert machine.run("run_all.sh", PIPELINE="1") == (1, "<>", "")
    assert machine.calls() == ["python -I -m fer_utils.pipeline"]


def installs(machine: Machine) -> list[str]:
    """What was installed before fer_utils."""
    return [call.split("--no-deps ")[1] for call in machine.calls() if "install" in call and "--no-deps" in call][:-1]


def packages_of(lock: Path) -> list[str]:
    return [line.split("==")[0] for line in lock.read_text().splitlines() if "==" in line]


needs_no_gpu = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA GPU")


@pytest.mark.parametrize("torch_is", ["cpu", pytest.param("", marks=needs_no_gpu)])
def test_without_a_gpu_pytorch_comes_without_cuda(machine: Machine, torch_is: str) -> None:
    code, _, error = machine.run("run_all.sh", FER_TORCH=torch_is)
    assert code == 0 and "without CUDA" in error
    lock = machine.root / ".venv/requirements.lock"
    packages = "torch==2.14.1 ; python_full_version < '3.11' torch==2.15.0 ; python_full_version >= '3.11'"
    assert installs(machine) == [f"-r {lock}", f"{CPU_INDEX} {packages} torchvision==0.29.2"]
    assert lock.read_text() == "numpy==1.26.4 \\\n    --hash=sha256:1\n    # via torch\n"


@pytest.mark.parametrize("variables", [{"FER_TORCH": "cuda"}, {"FER_TORCH": "", "SYSTEM": "Darwin"}, {"FER_TORCH": ""}])
def test_with_a_gpu_or_on_a_mac_the_lock_file_is_installed_as_it_is(machine: Machine, variables: dict) -> None:
    machine.command("nvidia-smi", "#!/usr/bin/env bash\nexit 0")
    assert machine.run("run_all.sh", **variables)[0] == 0
    assert installs(machine) == [f"-r {machine.root}/requirements.lock"]


@needs_no_gpu
def test_driver_without_a_gpu_does_not_count_as_a_gpu(machine: Machine) -> None:
    machine.command("nvidia-smi", "#!/usr/bin/env bash\nexit 9")
    assert "without CUDA" in machine.run("run_all.sh", FER_TORCH="")[2]


@pytest.mark.parametrize("how", ["NO_CPU_INDEX", "BROKEN_TORCH"])
def test_where_pytorch_without_cuda_fails_pypi_serves(machine: Machine, how: str) -> None:
    code, _, error = machine.run("run_all.sh", FER_TORCH="cpu", **{how: "1"})
    assert code == 0 and "installing PyPI's, which has CUDA" in error
    calls = machine.calls()
    failed = next(
        i for i, call in enumerate(calls) if ("--index-url" if how == "NO_CPU_INDEX" else "-c import torch") in call
    )
    lock = machine.root / ".venv/requirements.lock"
    assert calls[failed + 1] == "python -m pip uninstall --quiet --yes torch torchvision"
    assert calls[failed + 2].endswith(f"install --quiet --disable-pip-version-check --no-deps -r {lock}")
    assert packages_of(lock) == ["numpy", "nvidia-cublas", "torch", "torch", "torchvision"]
    assert machine.run("run_all.sh", FER_TORCH="cpu", **{how: "1"}) == (0, "<>", "")  # not tried again


def test_a_gpu_that_pytorch_cannot_use_is_said(machine: Machine) -> None:
    machine.run("run_all.sh", FER_TORCH="cpu")
    (machine.root / ".venv/lib/python3.11/site-packages/torch-2.15.0+cpu.dist-info").mkdir(parents=True)
    assert machine.run("run_all.sh", FER_TORCH="cpu") == (0, "<>", "")
    code, output, error = machine.run("run_all.sh", FER_TORCH="cuda")
    assert (code, output) == (0, "<>")
    assert "has PyTorch without CUDA" in error and "delete that folder and run again" in error


def test_misspelled_fer_torch_is_refused(machine: Machine) -> None:
    code, _, error = machine.run("run_all.sh", FER_TORCH="gpu")
    assert (
        code == 2
        and error == "run_all.sh: FER_TORCH=gpu is neither cpu nor cuda; set it to one of these, or do not set it\n"
    )
    assert not machine.calls()


def test_lock_leaves_out_what_pyproject_excludes() -> None:
    excluded = re.search(r"exclude-dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    names = re.findall(r'^ +"([a-z-]+)",$', excluded, re.MULTILINE)
    assert "jaxlib" in names
    assert not set(names) & {line.split("==")[0] for line in REQUIREMENTS}


def test_demo_sets_up_and_starts_the_page(machine: Machine) -> None:
    code, output, error = machine.run("run_demo.sh", "--port", "8900", WEBCAM="3")
    assert (code, output) == (3, "<--port><8900>") and "Setting up" in error


def test_changed_lock_file_installs_again(machine: Machine) -> None:
    machine.run("run_all.sh")
    machine.calls()
    (machine.root / "requirements.lock").write_text("numpy==2.5.0\n")
    assert machine.run("run_all.sh")[0] == 0
    calls = machine.calls()
    assert sum("pip install" in call for call in calls) == 2
    assert not any("-m venv" in call for call in calls)


def test_saving_a_notebook_does_not_dirty_git(machine: Machine) -> None:
    pytest.importorskip("nbstripout")
    nbformat = pytest.importorskip("nbformat")
    notebook = machine.root / "notebooks/04_baseline_cnn.ipynb"
    notebook.parent.mkdir()
    for file in (notebook.relative_to(machine.root), ".gitattributes"):
        shutil.copy(ROOT / file, machine.root / file)
    (machine.bin / "git").symlink_to(shutil.which("git"))
    (machine.root / ".gitignore").write_text(".venv")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=machine.root, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "begin")
    assert machine.run("run_all.sh")[0] == 0
    python = machine.root / ".venv/bin/python"  # until now a stand-in
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    save_as_jupyterlab(notebook, nbformat)
    assert git("diff") == "" and not code_state(machine.root)["dirty"]
    git("add", "-u")
    assert git("status", "--porcelain") == ""
    notebook.write_text(notebook.read_text().replace("You will learn", "You learn"))
    assert git("diff", "--stat").splitlines()[-1] == " 1 file changed, 1 insertion(+), 1 deletion(-)"
    python.unlink()
    git("checkout", "-q", ".")
    assert git("status", "--porcelain") == ""


def save_as_jupyterlab(path: Path, nbformat: ModuleType) -> None:
    """Write a notebook as JupyterLab does after all of its cells have run."""
    notebook = nbformat.read(path, 4)
    notebook.metadata.language_info |= {"version": "3.11.7", "mimetype": "text/x-python", "file_extension": ".py"}
    notebook.metadata.language_info |= {"codemirror_mode": {"name": "ipython", "version": 3}}
    notebook.metadata.language_info |= {"nbconvert_exporter": "python", "pygments_lexer": "ipython3"}
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [nbformat.v4.new_output("stream", text="hello")]
        cell.execution_count, cell.metadata["execution"] = number, {"iopub.status.busy": "now"}
    nbformat.write(notebook, path)


def test_voila_serves_no_files_beside_the_notebook() -> None:
    voila, traitlets = pytest.importorskip("voila.configuration"), pytest.importorskip("traitlets.config")
    settings = traitlets.Config(json.loads((ROOT / "voila.json").read_text()))
    assert voila.VoilaConfiguration().file_allowlist  # by default pictures
    assert voila.VoilaConfiguration(config=settings).file_allowlist == []


def test_lock_pins_every_package_with_its_hashes() -> None:
    assert len(REQUIREMENTS) > 100
    loose = [line for line in REQUIREMENTS if not re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)]
    assert not loose


def test_lock_has_one_opencv() -> None:
    assert [line.split("==")[0] for line in REQUIREMENTS if "opencv" in line] == ["opencv-contrib-python"]


def test_conda_users_get_the_same_commands_everywhere() -> None:
    header = (ROOT / "environment.yml").read_text().split("name: fer")[0]
    commands = [line.removeprefix("#   ") for line in header.splitlines() if line.startswith("#   ")]
    assert len(commands) == 4
    assert "```bash\n" + "\n".join(commands) + "\n```" in (ROOT / "docs/running.md").read_text()


def test_no_documented_command_installs_a_second_opencv() -> None:
    """Without --no-deps, pip follows grad-cam to an OpenCV that overwrites files of the one in the lock file.

    uv leaves it out, as pyproject.toml says.
    """
    pages = [ROOT / "README.md", ROOT / "environment.yml", *(ROOT / "docs").glob("*.md")]
    commands = [line for page in pages for line in page.read_text().splitlines() if "pip install" in line]
    assert any("--no-deps -e ." in command for command in commands)
    of_the_project = [line for line in commands if re.search(r"(?<!uv )pip install .*(-e|-r) ", line)]
    assert not [command for command in of_the_project if "--no-deps" not in command]


@pytest.mark.parametrize("how", ["PIP_FAILS", "KILLED"])
def test_interrupted_installation_is_not_complete(machine: Machine, how: str) -> None:
    machine.run("run_all.sh")
    lock = machine.root / "requirements.lock"
    before = lock.read_text()
    lock.write_text("numpy==2.5.0\n")
    machine.calls()
    code, _, error = machine.run("run_all.sh", **{how: "1"})
    assert code != 0
    assert not any("pipeline" in call for call in machine.calls())
    if how == "PIP_FAILS":
        assert "run_all.sh: the packages could not be installed" in error
    lock.write_text(before)
    assert machine.run("run_all.sh")[0] == 0
    assert sum("pip install" in call for call in machine.calls()) == 2


def test_two_first_calls_at_once_install_once(machine: Machine) -> None:
    if not shutil.which("flock"):
        pytest.skip("this system has no flock")
    first = machine.start("run_all.sh", PIP_SECONDS="0.5")
    time.sleep(0.3)
    second = machine.start("run_tests.sh")
    assert [process.communicate(timeout=30) and process.returncode for process in (first, second)] == [0, 0]
    assert sum("pip install" in call for call in machine.calls()) == 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OLD_PYTHON": "1"}, "no Python 3.10, 3.11 or 3.12 was found; install one"),
        ({"NO_VENV": "1"}, "python3.11 has no venv module; install it (Debian, Ubuntu: sudo apt install python3-venv)"),
        ({"FREE_KB": "5000000"}, "the environment needs 8 GB of disk space, but only 5 GB are free"),
        ({"NO_LIBGL": "1"}, "(ImportError: libGL.so.1: no such file); Debian, Ubuntu: sudo apt install libgl1"),
    ],
)
def test_what_the_machine_lacks_is_said_in_one_sentence(machine: Machine, variables: dict, message: str) -> None:
    code, output, error = machine.run("run_all.sh", **variables)
    assert (code, output) == (2, "")
    assert message in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("run_all.sh: ")
    assert machine.run("run_all.sh")[0] == 0


def test_without_any_python(machine: Machine) -> None:
    (machine.bin / "python3.11").unlink()
    code, _, error = machine.run("run_tests.sh")
    assert code == 2
    assert "run_tests.sh: no Python 3.10, 3.11 or 3.12 was found" in error


def test_environment_with_an_unsupported_python(machine: Machine) -> None:
    machine.run("run_all.sh")
    (machine.root / ".venv/complete").unlink()
    code, _, error = machine.run("run_all.sh", OLD_PYTHON="1")
    assert code == 2
    assert "does not have Python 3.10, 3.11 or 3.12; delete that folder" in error


def test_moved_project(machine: Machine) -> None:
    machine.run("run_all.sh")
    machine.root = machine.root.rename(machine.root.with_name("elsewhere"))
    code, _, error = machine.run("run_all.sh")
    assert code == 2
    assert "was created in another folder and cannot be moved" in error


def test_uv_is_used_where_there_is_one(machine: Machine) -> None:
    machine.command("uv", UV)
    assert machine.run("run_all.sh")[0] == 0
    calls = [" ".join(call.split()[:3]) for call in machine.calls() if call.startswith("uv") or "pip install" in call]
    assert calls == ["uv venv --quiet", "uv pip install", "uv pip install"]


def test_own_environment_is_used_as_it_is(machine: Machine) -> None:
    assert machine.run("run_all.sh", "--list", FER_PYTHON="python3.11") == (0, "<--list>", "")
    assert not (machine.root / ".venv").exists()
    code, _, error = machine.run("run_all.sh", FER_PYTHON="python3.11", NO_FER_UTILS="1")
    assert code == 2
    install = "python3.11 -m pip install --no-deps"
    assert f"run: {install} -r '{machine.root}/requirements.lock' && {install} -e '{machine.root}'" in error


@pytest.mark.parametrize(("ruff", "pytest_code", "code"), [("0", "0", 0), ("1", "0", 1), ("0", "5", 5), ("1", "5", 5)])
def test_run_tests_fails_when_anything_fails(machine: Machine, ruff: str, pytest_code: str, code: int) -> None:
    machine.run("run_all.sh")
    machine.calls()
    result, output, _ = machine.run("run_tests.sh", "-k", "a b", RUFF=ruff, PYTEST=pytest_code)
    assert result == code
    assert output.splitlines()[-2:] == [f"in {machine.root}", "<-k><a b>"]
    folders = "fer_utils tests benchmarks docs notebooks"
    assert machine.calls() == [
        f"python -m ruff check {folders}",
        f"python -m ruff format --check {folders}",
        "python -m pytest -k a b",
    ]


def test_the_whole_suite_installs_ray_once_and_runs_without_it_as_well(machine: Machine) -> None:
    machine.run("run_all.sh")
    for arguments, variables, installs in (([], {}, 0), (["-k", "data"], {"NO_RAY": "1"}, 0), ([], {"NO_RAY": "1"}, 1)):
        machine.calls()
        assert machine.run("run_tests.sh", *arguments, **variables)[0] == 0
        assert sum("install --quiet --disable-pip-version-check ray==" in call for call in machine.calls()) == installs
    code, _, error = machine.run("run_tests.sh", NO_RAY="1", PIP_FAILS="1")
    assert code == 0 and "Ray could not be installed" in error


def test_two_processes_share_the_whole_suite(machine: Machine) -> None:
    machine.run("run_all.sh")
    assert "<-n><2><--dist><loadfile>" in machine.run("run_tests.sh")[1]
    assert "<-n>" not in machine.run("run_tests.sh", "-k", "data")[1]


def test_tests_and_the_processes_they_start_compute_with_one_thread() -> None:
    assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == "1"


def test_run_all_for_real_starts_within_three_seconds() -> None:
    seconds = []
    for _ in range(3):  # the machine may be busy with something else
        started = time.monotonic()
        done = subprocess.run(
            [ROOT / "run_all.sh", "--list"],
            cwd="/",
            env=os.environ | {"FER_PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )
        seconds.append(time.monotonic() - started)
        assert done.returncode == 0, done.stderr
        assert "04_baseline_cnn" in done.stdout
    assert min(seconds) < 3
