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
MY_RUN = "outputs/my_run"  # where notebooks write that are run by hand


def project_path(path: str | Path) -> Path:
    """Return an absolute path; a relative path starts at the root of the repository, not at the working directory."""
    return PROJECT_ROOT / os.path.expanduser(path)


def find_artifact(inputs: str | Path, stage: str, file: str) -> Path:
    """Find a file that the notebook `stage` saved for later notebooks, such as weights; arguments as in artifact_paths.

    If the file is in none of the places, this returns the path where it should have been.
    """
    paths = artifact_paths(inputs, stage, file)
    return next((path for path in paths if path.is_file()), paths[1])


def artifact_paths(inputs: str | Path, stage: str, file: str) -> list[Path]:
    """List the places where a file of the notebook `stage` may be, in the order of the search.

    inputs: a parameter of every notebook. It is the folder of a manual run, or a folder of published reports. The
    checkpoints of reports/ are in outputs/, those of outputs/sample/reports in outputs/sample/.

    The search goes through the folder derived/ of the reports (small files that git tracks, such as landmarks.npz), the
    checkpoints, outputs/my_run, and finally the compact networks of the project in models/, which an installed package
    has among its assets.
    """
    inputs = project_path(inputs)
    places = [
        inputs / "derived",
        inputs.parent / "outputs" / "checkpoints" / stage,
        inputs / "checkpoints",
        inputs.parent / "checkpoints" / stage,
        project_path(MY_RUN) / "checkpoints",
    ]
    compact = [folder / f"{Path(file).stem}.safetensors" for folder in (PROJECT_ROOT / "models", ASSETS)]
    return [*(place / file for place in places), *compact]


def choose_inputs(inputs: str, form: str) -> str:
    """Choose where a notebook looks for results of earlier ones: on the embedded sample, those of profile sample.

    form: of the data that the notebook uses. Only the default, "reports", is replaced, and a line is printed.
    """
    of_sample = "outputs/sample/reports"
    if (inputs, form) != ("reports", "sample") or not project_path(of_sample).is_dir():
        return inputs
    print(f"results of earlier notebooks on the sample: {of_sample}")
    return of_sample


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
