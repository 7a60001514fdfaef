"""Record where results come from: code, data, versions and device."""

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
# Changes here do not make the commit dirty: a run rewrites some of these files, and none of them decides a result.
NOT_CODE = ("reports", "outputs", "docs", "README.md", "tests")


def gather_provenance(root: Path, faces: FER2013, source: str, device: str, profile: str) -> dict[str, object]:
    """Return the facts about a run that the report shows. source: the data's file name."""
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


def gather_run_facts(started: datetime, device: str, code: Mapping[str, object]) -> dict[str, object]:
    """Return the facts that a manifest records about a run that ends now, without its time and memory.

    device: "cpu" or "cuda". code: the result of code_state when the run started.
    """
    return {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "device_name": device_name(device),
        "versions": package_versions(),
        **code,
    }


def read_last_run(reports: Path) -> dict:
    """Return the content of provenance.json in `reports`; empty when there is no valid one."""
    try:
        provenance = json.loads((reports / "provenance.json").read_text(encoding="utf-8"))
        return provenance if isinstance(provenance["stages"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def code_state(root: Path) -> dict[str, object]:
    """Return "commit" and "dirty" (whether the code differs from the commit); None for what cannot be determined.

    In a copy without git history, such as a downloaded zip, the commit is known, but not whether the code was changed.
    """
    if not (root / ".git").exists() and (commit := read_archived_commit(root)):
        return {"commit": commit, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    code = ("--", ".", *(f":!{path}" for path in NOT_CODE))
    # Unlike git status, git diff does not list a notebook that was only saved with its outputs.
    changed = _git(root, "diff", "--no-renames", "--name-only", "HEAD", *code)
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", *code)
    return {"commit": commit or None, "dirty": None if changed is None else bool(changed or untracked)}


def read_archived_commit(root: Path) -> str | None:
    """Return the commit that `git archive` wrote into .git_archival.txt; None in any other copy."""
    try:
        text = (root / ".git_archival.txt").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    match = re.search(r"^node: ([0-9a-f]{40,64})$", text, re.MULTILINE)
    return match[1] if match else None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in PACKAGES if name in installed}


def device_name(device: str) -> str:
    """Return the name of the GPU, or the kind of processor and the number of cores that this process may use."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()} CPU, {cores} cores"


def _git(root: Path, *arguments: str) -> str | None:
    """Return what a git command prints; None without git or outside a checkout. It takes no lock."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
