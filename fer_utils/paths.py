"""Paths of the project, artifacts of earlier notebooks, and atomic writes."""

import os
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = PROJECT_ROOT / "data"
ASSETS = Path(__file__).parent / "assets"


def project_path(path: str | Path) -> Path:
    """Return an absolute path; a relative path starts at the root of the repository, not at the working directory."""
    return PROJECT_ROOT / os.path.expanduser(path)


def find_artifact(inputs: str | Path, stage: str, file: str) -> Path:
    """Find a file that the notebook `stage` saved for later notebooks, such as weights.

    inputs: a parameter of every notebook. It is the folder of a manual run, or a folder of published reports. The
    checkpoints of reports/ are in outputs/, those of outputs/sample/reports in outputs/sample/.

    The search goes through the folder derived/ of the reports (small files that git tracks, such as landmarks.npz), the
    checkpoints, outputs/my_run, and finally the compact networks of the project in models/. If the file is in none of
    them, this returns the path where it should have been.
    """
    inputs = project_path(inputs)
    expected = inputs.parent / "outputs" / "checkpoints" / stage
    places = [
        inputs / "derived",
        expected,
        inputs / "checkpoints",
        inputs.parent / "checkpoints" / stage,
        PROJECT_ROOT / "outputs" / "my_run" / "checkpoints",
    ]
    paths = [*(place / file for place in places), PROJECT_ROOT / "models" / f"{Path(file).stem}.safetensors"]
    return next((path for path in paths if path.is_file()), expected / file)


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write a file completely or not at all: after a crash, `path` still has its old content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
