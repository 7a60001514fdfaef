"""What an installation without a clone has: every file of the package, and the small network."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fer_utils.paths import PROJECT_ROOT

BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
FIND = """
from fer_utils.paths import PROJECT_ROOT, find_artifact
print(PROJECT_ROOT, find_artifact("reports", "12_best_model", "small_model.pt"), sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy because setuptools writes into the folder that it builds from."""
    copy, folder = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(PROJECT_ROOT / "fer_utils", copy / "fer_utils", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT_ROOT / name, copy)
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=copy, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_every_file_of_the_package_and_the_small_networks(wheel):
    files = [path for path in (PROJECT_ROOT / "fer_utils").rglob("*") if path.is_file()]
    expected = {path.relative_to(PROJECT_ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    expected |= {f"fer_utils/assets/{path.name}" for path in (PROJECT_ROOT / "models").glob("*.safetensors")}
    assert expected - set(zipfile.ZipFile(wheel).namelist()) == set()


@pytest.mark.parametrize("inside", ["", "notebooks"])
def test_an_installed_package_finds_the_clone_around_the_working_directory(wheel, tmp_path, inside):
    clone = tmp_path / "clone"
    (clone / "notebooks").mkdir(parents=True)
    (clone / "run_all.sh").touch()
    assert find(wheel, tmp_path, clone / inside)[0] == str(clone)


def test_without_a_clone_the_working_directory_counts_and_the_small_network_is_found(wheel, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    root, network = find(wheel, tmp_path, tmp_path / "elsewhere")
    assert root == str(tmp_path / "elsewhere")
    assert Path(network).read_bytes() == (PROJECT_ROOT / "models" / "small_model.safetensors").read_bytes()


def find(wheel: Path, folder: Path, cwd: Path) -> list[str]:
    """The project's root and the small network, as a package sees them that was unpacked from the wheel."""
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    environment = os.environ | {"PYTHONPATH": str(folder / "site-packages")}
    done = subprocess.run([sys.executable, "-c", FIND], cwd=cwd, env=environment, capture_output=True, text=True)
    return done.stdout.splitlines()
