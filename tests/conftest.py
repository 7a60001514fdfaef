"""Shared fixtures: where the real data is, if this machine has it; and figures that do not outlive their test."""

import os
import shutil
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

# Before NumPy and PyTorch are imported, and inherited by kernels and other processes. The tensors of the tests are
# tiny: with more threads than free cores, each operation waits until all threads had their turn.
os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the whole course where several processes share the files, so that it does not run alone at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name != "test_sample_profile.py")


def find_real_archive() -> Path | None:
    """The real FER2013 archive: $FER_DATA, data/archive.zip, or ../shared/fer2013/archive.zip; None when absent."""
    candidates = [ROOT / "data" / "archive.zip", ROOT.parent / "shared" / "fer2013" / "archive.zip"]
    if os.environ.get("FER_DATA"):
        candidates.insert(0, Path(os.environ["FER_DATA"]))
    return next((path for path in candidates if zipfile.is_zipfile(path)), None)


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """Path of the real archive.zip; the test is skipped, and says so, where there is none."""
    path = find_real_archive()
    if path is None:
        pytest.skip("the real FER2013 archive is not on this machine (set FER_DATA to its path)")
    return path


@pytest.fixture(scope="session")
def needs_mediapipe() -> None:
    """Skips what finds faces, where MediaPipe has no package (Linux on ARM)."""
    try:
        metadata.version("mediapipe")
    except metadata.PackageNotFoundError:
        pytest.skip("MediaPipe is not installed here")


@pytest.fixture(scope="session")
def needs_face_mesh(needs_mediapipe) -> None:
    """Skips what finds landmarks, where MediaPipe is newer than 0.10.21 and no longer brings the face mesh."""
    if not metadata.distribution("mediapipe").locate_file("mediapipe/modules/face_landmark").exists():
        pytest.skip(f"MediaPipe {metadata.version('mediapipe')} does not bring the face mesh")


@pytest.fixture
def as_committed() -> None:
    """Skips what compares texts with the committed reports/ once somebody's own run has renewed these."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "reports", "models"]
    if not shutil.which("git") or subprocess.run(command, cwd=ROOT, capture_output=True).returncode:
        pytest.skip("reports/ is not as committed, or this is no git checkout: the texts speak of the committed one")


@pytest.fixture(autouse=True)
def no_figures_left():
    """Close what a test has drawn, so that the next one starts without figures."""
    yield
    plt.close("all")
