"""Paths of the project, artifacts of earlier notebooks, and atomic writes."""

import os
from pathlib import Path


def find_project_root() -> Path:
    """Return the clone that holds this package, else the clone around the working directory, else that directory.

    Only a package that was installed without `-e` lies outside a clone.
    """
    folders = [Path(__file__).resolve().parent.parent, Path.cwd(), *Path.cwd().parents]
    return next((folder for folder in folders if (folder / "run_all.sh").is_file()), Path.cwd())


PROJECT_ROOT = find_project_root()
DATA_DIR = PROJECT_ROOT / "data"
ASSETS = Path(__file__).parent / "assets"


def project_path(path: str | Path) -> Path:
    """Return an absolute path; a relative path starts at the root of the repository, not at the working directory."""
    return PROJECT_ROOT / Path(path).expanduser()


def find_artifact(inputs: str | Path, stage: str, file: str) -> Path:
    """Find a file that the notebook `stage` saved for later notebooks, such as weights.

    inputs: a parameter of every notebook. It is the folder of a manual run, or a folder of published reports. The
    checkpoints of reports/ are in outputs/, those of outputs/sample/reports in outputs/sample/.

    The search goes through the folder derived/ of the reports (small files that git tracks, such as landmarks.npz), the
    checkpoints, outputs/my_run, and finally the compact networks of the project in models/, which an installed package
    has among its assets. If the file is in none of them, this returns the path where it should have been.
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
    compact = [folder / f"{Path(file).stem}.safetensors" for folder in (PROJECT_ROOT / "models", ASSETS)]
    paths = [*(place / file for place in places), *compact]
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
