"""Shared fixtures: the real data and a browser, if they are here; and figures that do not outlive their test."""

import os
import re
import shutil
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

# Before NumPy and PyTorch are imported, and inherited by kernels and other processes. The tensors of the tests are
# tiny: with more threads than free cores, each operation waits until all threads had their turn.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image

from fer_utils.vision.detector import FaceFinder

ROOT = Path(__file__).resolve().parent.parent
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", MAC)


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


# --- A browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """A function that starts the browser with some options; each set of options is started once."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; ./run_tests.sh installs it")
    path = os.environ.get("FER_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome was found (Debian, Ubuntu: sudo apt install chromium; or set FER_BROWSER)")
    started = {}
    with api.sync_playwright() as playwright:

        def start(*options):
            if options not in started:
                arguments = ["--no-sandbox", "--disable-gpu", *options]
                started[options] = playwright.chromium.launch(executable_path=path, args=arguments)
            return started[options]

        yield start
        for browser in started.values():
            browser.close()


@pytest.fixture(scope="session")
def portrait():
    return np.asarray(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB"))


@pytest.fixture(scope="module")
def finder(needs_mediapipe):
    """The face detector, in its process."""
    finder = FaceFinder()
    yield finder
    finder.close()


@pytest.fixture(scope="session")
def fake_camera(portrait, tmp_path_factory):
    """Options for a browser whose camera shows the portrait."""
    film = tmp_path_factory.mktemp("camera") / "portrait.y4m"
    frame = cv2.copyMakeBorder(portrait[:480], 0, 0, 64, 64, cv2.BORDER_CONSTANT)
    with film.open("wb") as stream:
        stream.write(b"YUV4MPEG2 W640 H480 F15:1 Ip A1:1 C420jpeg\n")
        for _ in range(5):
            stream.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())
    return "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"


@pytest.fixture
def keep(request, tmp_path_factory):
    """A function that keeps a screenshot of a page."""
    folder = Path(os.environ.get("FER_SCREENSHOTS") or tmp_path_factory.getbasetemp() / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", request.node.name)
    return lambda page, what="": page.screenshot(path=folder / f"{name}{what}.png")
