"""Is a stage up to date? Everything its result depends on is written into a stamp when it has been published.

A stage is up to date while its stamp still describes what is there now: the notebook's code cells, the parameters, the
fer_utils modules it imports, the data, the kind of device, the published files it reads, and those it made.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fer_utils.data import atomic_write
from fer_utils.pipeline.meaning import cell_hash, module_hashes
from fer_utils.pipeline.notebooks import CodeCell


def dependencies(
    cells: list[CodeCell],
    parameters: Mapping[str, object],
    package: Path,
    data: str,
    device: str,
    profile: str,
    inputs: Mapping[str, str | None],
) -> dict:
    """Everything that decides what a stage publishes, as it comes back from JSON.

    package: the folder fer_utils. data: form and fingerprint of the data. device: "cpu" or "cuda".
    inputs: name -> hash of the published files of the stages that it needs.
    """
    depends = {
        "cells": [cell_hash(cell) for cell in cells],
        "parameters": dict(parameters),
        "modules": module_hashes(cells, package),
        "data": data,
        "device": device,
        "profile": profile,
        "inputs": dict(inputs),
    }
    return json.loads(json.dumps(depends))


def differences(old: Mapping, new: Mapping) -> list[str]:
    """What changed between two results of `dependencies`, in words; empty when nothing did."""
    found = [f"{key} {old[key]} -> {new[key]}" for key in ("profile", "device", "data") if old[key] != new[key]]
    modules = _changed_keys(old["modules"], new["modules"])
    found += [f"{', '.join(modules)} changed"] if modules else []
    needed = _changed_keys(old["inputs"], new["inputs"])
    rest = f" and {len(needed) - 3} more" if len(needed) > 3 else ""
    found += [f"needed file{'s' if len(needed) > 1 else ''} {', '.join(needed[:3])}{rest} changed"] if needed else []
    before, after = old["parameters"], new["parameters"]
    for name in _changed_keys(before, after):
        found.append(f"parameter {name} {before.get(name, 'default')} -> {after.get(name, 'default')}")
    if len(old["cells"]) != len(new["cells"]):
        found.append(f"{len(new['cells'])} code cells instead of {len(old['cells'])}")
    else:
        pairs = enumerate(zip(old["cells"], new["cells"], strict=True), start=1)
        cells = [str(number) for number, (a, b) in pairs if a != b]
        found += [f"code cell{'s' if len(cells) > 1 else ''} {', '.join(cells)} changed"] if cells else []
    return found


def damaged(outputs: Mapping[str, str], root: Path) -> list[str]:
    """In words, which published files (path below `root` -> content hash) are missing or differ; empty when intact."""
    found = {file: content_hash(root / file) for file in outputs}
    return [f"{file} {'was edited' if now else 'is missing'}" for file, now in found.items() if now != outputs[file]]


def content_hash(path: Path) -> str | None:
    """Hash of a file's content, None when there is no such file.

    Of an executed notebook only the sources and outputs count, because opening it in JupyterLab rewrites the rest.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        try:
            cells = json.loads(content)["cells"]
            content = json.dumps([[_joined(cell["source"]), _plain(cell.get("outputs"))] for cell in cells]).encode()
        except (ValueError, KeyError, TypeError):
            pass  # not a notebook any more: its bytes differ from what was published, which is all that matters
    return _hash(content)


def read_stamp(path: Path) -> dict | None:
    """The stamp in a file; None when there is none or when it is damaged, which makes the stage run again."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
        differences(stamp["depends"], stamp["depends"])
        float(stamp["facts"]["seconds"])
        return stamp if isinstance(stamp["outputs"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_stamp(path: Path, depends: Mapping, outputs: Mapping[str, str], facts: Mapping) -> None:
    """Record what a published stage depended on, what it published (path -> hash) and the facts of its run."""
    atomic_write(path, json.dumps({"depends": depends, "outputs": outputs, "facts": facts}, indent=1).encode())


def read_begun(staging: Path) -> dict | None:
    """What the unfinished run in a staging folder depends on; None when there is none."""
    try:
        return json.loads((staging / "begun.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_begun(staging: Path, depends: Mapping) -> None:
    """Record what the run that begins in a staging folder depends on."""
    atomic_write(staging / "begun.json", json.dumps(depends).encode())


def _changed_keys(old: Mapping, new: Mapping) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _joined(text: str | list[str]) -> str:
    return "".join(text)


def _plain(value: object) -> object:
    """Outputs without execution counts, every text in one piece: a notebook file may also hold it line by line."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "execution_count"}
    if isinstance(value, list):
        return "".join(value) if all(isinstance(item, str) for item in value) else [_plain(item) for item in value]
    return value
