"""The demo without a server: `python -m fer_utils.web` builds a folder of static files that compute in the browser.

The folder has the page of the demo (fer_utils/demo/app.js), its backend (web/), the network of models/ as an ONNX file,
and MediaPipe's face detectors. Any web server will do for it.
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from fer_utils.errors import DataError
from fer_utils.files import require_folder
from fer_utils.internet import OFFLINE
from fer_utils.paths import PROJECT_ROOT, project_path
from fer_utils.vision.detector import RANGES
from fer_utils.vision.mediapipe_process import LandmarksUnavailable, mediapipe_version

SOURCES = PROJECT_ROOT / "web"
APP = Path(__file__).parent / "demo"
CDN = "https://cdn.jsdelivr.net/npm/"
ORT = "onnxruntime-web@1.30.0"
MEDIAPIPE = "@mediapipe/tasks-vision@0.10.35"  # from 1.0 on it sends metrics to Google; 0.10.21 lacks "full"
# Files of packages on npm -> their SHA-384 in base64, as browsers check it.
RUNTIME = {
    f"{ORT}/dist/ort.wasm.bundle.min.mjs": "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    f"{ORT}/dist/ort-wasm-simd-threaded.wasm": "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    f"{MEDIAPIPE}/vision_bundle.mjs": "Ll1OFMb+0geb9fpvYvxFbnpB/UjqBeQ2iVta6EtAGmIW2s0Oed/AhFDe+32PXnKs",
    f"{MEDIAPIPE}/wasm/vision_wasm_internal.js": "Jtpn7naW+NTZaW0bqqphUxsw0EEkI57I7pi1BCbPmyTzQP/310qoQkvs8jx/gIh9",
    f"{MEDIAPIPE}/wasm/vision_wasm_internal.wasm": "DxwX646hT39NZpabveHTlqtRr10DJRNEQdxTe7aAg/UcsenCuu8o9NyMmSF6wHP+",
}
MODELS = "mediapipe/modules/face_detection"
DETECTORS = {"short": "face_detection_short_range.tflite", "full": "face_detection_full_range_sparse.tflite"}


def main(argv: Sequence[str] | None = None) -> int:
    """Build the folder as the command line asks; returns the exit code: 0, or 2 with one plain sentence."""
    options = parse_options(argv)
    folder = project_path(options.output)
    try:
        require_folder(folder)
        build(folder, options.offline)
    except (DataError, LandmarksUnavailable) as error:
        print(f"web: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder} is ready ({size:.0f} MB). To see it: {sys.executable} -m http.server -d {folder}")
    return 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; argparse itself ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.web", description="Build the demo as static files that compute in the browser."
    )
    parser.add_argument("--output", default="outputs/web", help="folder to write (default: outputs/web)")
    parser.add_argument(
        "--offline", action="store_true", help=f"copy the runtime from npm, instead of a page that loads it from {CDN}"
    )
    return parser.parse_args(argv)


def build(folder: Path, offline: bool) -> None:
    """Write the whole page into a folder. offline: with its runtime, so that it needs no other server.

    DataError if npm cannot provide the runtime, LandmarksUnavailable without MediaPipe's detectors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy_detectors(folder)
    if offline:
        copy_runtime(folder / "runtime")
    copy_sources(folder, offline)
    page = {"runtime": runtime(offline), "networks": copy_network(folder), "examples": write_examples(folder)}
    (folder / "page.json").write_text(json.dumps(page, indent=1), encoding="utf8")


def copy_detectors(folder: Path) -> None:
    """Copy the detectors that the Python demo uses, too, from MediaPipe's package; LandmarksUnavailable without it."""
    mediapipe_version()
    for name in RANGES:
        source = metadata.distribution("mediapipe").locate_file(f"{MODELS}/{DETECTORS[name]}")
        shutil.copyfile(source, folder / f"{name}.tflite")


def copy_sources(folder: Path, offline: bool) -> None:
    """Copy the page and its backend. offline: the page then forbids itself to contact the CDN."""
    for source in (*SOURCES.iterdir(), APP / "app.js", APP / "app.css"):
        shutil.copyfile(source, folder / source.name)
    if offline:
        index = folder / "index.html"
        index.write_text(index.read_text(encoding="utf8").replace(f" {CDN}", ""), encoding="utf8")


def runtime(offline: bool) -> dict[str, dict[str, str]]:
    """List the files of the runtime: name -> where the page finds it, and its integrity."""
    return {
        Path(file).name: {
            "url": f"runtime/{Path(file).name}" if offline else CDN + file,
            "integrity": f"sha384-{sha384}",
        }
        for file, sha384 in RUNTIME.items()
    }


def copy_network(folder: Path) -> list[dict]:
    """Copy the ONNX file of the network in models/, and describe it for the menu of app.js."""
    from fer_utils import release
    from fer_utils.demo.predictor import describe
    from fer_utils.models.weights import load_classifier

    shutil.copyfile(release.ONNX, folder / release.ONNX.name)
    name, about = release.COMPACT.stem, describe(load_classifier(release.COMPACT))
    return [{"id": name, "title": name, "about": about, "heatMap": False, "file": release.ONNX.name}]


def write_examples(folder: Path) -> list[dict]:
    """Write the pictures to try, and list their names and files."""
    from fer_utils.demo.widget import load_examples

    (folder / "examples").mkdir(exist_ok=True)
    examples = load_examples()
    for name, picture in examples.items():
        (folder / "examples" / f"{name}.jpg").write_bytes(picture)
    return [{"name": name, "file": f"examples/{name}.jpg"} for name in examples]


# --- Runtime from npm -------------------------------------------------------------------------------------------------


def copy_runtime(folder: Path) -> None:
    """Fetch the packages with npm and copy the files of RUNTIME; DataError without npm or its server."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        for package in (ORT, MEDIAPIPE):
            for file, content in read_package(fetch_package(package, Path(downloads)), package):
                (folder / Path(file).name).write_bytes(content)


def fetch_package(package: str, folder: Path) -> Path:
    """Download a package NAME@VERSION from npm, or take it from npm's cache; returns its archive."""
    cache = "--offline" if os.environ.get(OFFLINE) == "1" else "--prefer-offline"
    options = [cache, "--fetch-retries=0", "--silent", f"--pack-destination={folder}"]
    try:
        done = subprocess.run(
            ["npm", "pack", package, *options], capture_output=True, text=True, check=True, timeout=600
        )
    except FileNotFoundError:
        raise DataError("--offline needs npm; install Node.js, or build the page without --offline") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise DataError(f"npm could not download {package}; check the connection and try again") from None
    return folder / done.stdout.split()[-1]


def read_package(archive: Path, package: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of RUNTIME in the archive of a package; DataError if one has another checksum."""
    with tarfile.open(archive) as tar:
        for file in RUNTIME:
            if file.startswith(f"{package}/"):
                content = tar.extractfile(f"package{file.removeprefix(package)}").read()
                if base64.b64encode(hashlib.sha384(content).digest()).decode() != RUNTIME[file]:
                    raise DataError(f"{file} from npm has another checksum than the one in {Path(__file__).name}")
                yield file, content


if __name__ == "__main__":
    sys.exit(main())
