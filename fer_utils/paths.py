"""Where things are: the project's folder, what earlier notebooks left, and files that are written whole."""

import os
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = PROJECT_ROOT / "data"
ASSETS = Path(__file__).parent / "assets"


def project_path(path: str | Path) -> Path:
    """Return an absolute path; a relative one is taken from the repository root, wherever Python was started."""
    return PROJECT_ROOT / Path(path).expanduser()


def find_artifact(inputs: str | Path, stage: str, file: str) -> Path:
    """Find what the notebook `stage` left for later ones in its folder checkpoints/, such as weights.

    inputs: as every notebook gets it. It may be the folder of a run by hand, or the published reports: reports/, with
    the checkpoints in outputs/, or outputs/sample/reports, with those in outputs/sample/. Small files that git keeps,
    such as landmarks.npz, are in the folder derived/ of the reports. What is in none of these places is looked for in
    outputs/my_run, then among the compact networks that ship with the project, in models/. If it is not there either,
    the path is where it should have been.
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


# --- Cache ------------------------------------------------------------------------------------------------------------


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, `path` holds either its old content or all of the new."""
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
