"""Where results come from: code, data, versions, machine, and the facts of every stage's last run."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from fer_utils.data.dataset import FER2013

PACKAGES = (
    *("torch", "torchvision", "numpy", "pandas", "scikit-learn", "opencv-contrib-python", "mediapipe"),
    *("matplotlib", "papermill", "ipykernel", "fvcore", "scipy", "grad-cam"),
)
# What may differ from the commit without making it dirty.
NO_CODE = ("reports", "outputs", "docs", "README.md", "tests")


def gather_provenance(root: Path, faces: FER2013, source: str, device: str, profile: str) -> dict[str, object]:
    """What may differ between two runs that give the same results. source: the data's file name."""
    return {
        **code_state(root),
        "data": {
            "form": faces.form,
            "fingerprint": faces.fingerprint,
            "standard": faces.standard,
            "source": source,
            "notes": list(faces.notes),
        },
        "versions": package_versions(),
        "device": device_name(device),
        "profile": profile,
    }


def run_facts(started: datetime, device: str, code: Mapping[str, object]) -> dict[str, object]:
    """What the manifest says of a run that ends now, besides what it cost. device: "cpu" or "cuda". code: its state."""
    return {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "device_name": device_name(device),
        "versions": package_versions(),
        **code,
    }


def last_run(reports: Path) -> dict:
    """The last provenance.json in `reports`; empty where there is none that can be read."""
    try:
        provenance = json.loads((reports / "provenance.json").read_text(encoding="utf-8"))
        return provenance if isinstance(provenance["stages"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def code_state(root: Path) -> dict[str, object]:
    """commit, and whether the code differs from it (dirty); None where this cannot be known.

    A copy without git history, such as a downloaded zip, knows its commit but not whether it was changed. A run
    rewrites reports, executed notebooks and tables in docs/, and neither texts nor tests decide a result, so these do
    not count.
    """
    if not (root / ".git").exists() and (commit := archived_commit(root)):
        return {"commit": commit, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--no-renames", "--", ".", *(f":!{path}" for path in NO_CODE))
    return {"commit": commit or None, "dirty": None if changed is None else bool(changed)}


def archived_commit(root: Path) -> str | None:
    """The commit that `git archive` has written into .git_archival.txt; None where it has not."""
    try:
        text = (root / ".git_archival.txt").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.search(r"^node: ([0-9a-f]{40,64})$", text, re.MULTILINE)
    return found[1] if found else None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, as far as they are installed."""
    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}


def device_name(device: str) -> str:
    """The name of the GPU, or the kind of processor with the number of cores this process may use."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()} CPU, {cores} cores"


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None when there is no git or no checkout. It takes no lock and needs no history."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
