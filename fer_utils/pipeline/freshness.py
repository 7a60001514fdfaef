"""Decide whether a stage is up to date, from its manifest in reports/manifests/.

A notebook writes its manifest. The runner adds three parts:

record  what the results depend on, and a hash of every file. The same inputs give the same record.
run     facts about the run: times, memory, device, versions, commit. They differ from run to run, so they do not decide
        whether a stage is up to date. They are kept here so that provenance.json can be made from manifests alone.
hash    of everything else in the manifest, so that edits are noticed

A stage is up to date while its record still matches the project: the code of the notebook, its parameters, the modules
of fer_utils that it imports, the data, the published files that it reads, and the files that it made. Git ignores
checkpoints, so a clone may lack them; a checkpoint that is there must be the recorded one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fer_utils.paths import atomic_write
from fer_utils.pipeline.code_hash import hash_cell, hash_modules
from fer_utils.pipeline.notebooks import CodeCell

# The pages into which page.py writes tables, and the blocks that it writes there.
GENERATED_PAGES = ("docs/results.md", "docs/running.md")
GENERATED = re.compile(r"<!-- (\w+): generated from .*?<!-- end of \1 -->", re.DOTALL)
START_FILE = "start.json"  # in a staging folder: what the unfinished run there depends on


@dataclass(frozen=True)
class Record:
    """What a manifest says about the run that published a stage."""

    depends: dict | None  # see gather_dependencies; None for a benchmark
    files: dict[str, str]  # published file, relative to the project folder -> content hash
    checkpoints: dict[str, str]  # the same for files that git ignores
    run: dict  # times, memory, device, versions, commit

    def all_files(self) -> list[str]:
        """Return every published file, relative to the project folder."""
        return [*self.files, *self.checkpoints]

    def facts(self) -> dict:
        """Return what provenance.json says about the stage: everything but the versions."""
        facts = {key: self.depends[key] for key in ("profile", "parameters", "data")}
        return facts | {key: value for key, value in self.run.items() if key != "versions"}


# --- What a stage depends on ------------------------------------------------------------------------------------------


def gather_dependencies(
    cells: list[CodeCell],
    parameters: Mapping[str, object],
    package: Path,
    data: str,
    profile: str,
    inputs: Mapping[str, str | None],
) -> dict:
    """Gather everything that decides what a stage publishes, with the types that JSON gives back.

    package: the folder fer_utils. data: form and fingerprint of the data. inputs: file that is read -> its hash.
    The device is left out: a report made on a GPU stays valid on a machine without one.
    """
    depends = {
        "cells": [hash_cell(cell) for cell in cells],
        "parameters": dict(parameters),
        "modules": hash_modules(cells, package),
        "data": data,
        "profile": profile,
        "inputs": dict(inputs),
    }
    return json.loads(json.dumps(depends))


def describe_changes(old: Mapping, new: Mapping) -> list[str]:
    """Describe what differs between two results of gather_dependencies; empty when nothing does."""
    changes = [f"{key} {old[key]} -> {new[key]}" for key in ("profile", "data") if old[key] != new[key]]
    modules = _find_changed_keys(old["modules"], new["modules"])
    changes += [f"{', '.join(modules)} changed"] if modules else []
    changes += _describe_changed_inputs(_find_changed_keys(old["inputs"], new["inputs"]))
    before, after = old["parameters"], new["parameters"]
    for name in _find_changed_keys(before, after):
        changes.append(f"parameter {name} {before.get(name, 'default')} -> {after.get(name, 'default')}")
    return changes + _describe_changed_cells(old["cells"], new["cells"])


def _describe_changed_inputs(files: list[str], limit: int = 3) -> list[str]:
    if not files:
        return []
    more = f" and {len(files) - limit} more" if len(files) > limit else ""
    return [f"needed file{'s' if len(files) > 1 else ''} {', '.join(files[:limit])}{more} changed"]


def _describe_changed_cells(old: list[str], new: list[str]) -> list[str]:
    if len(old) != len(new):
        return [f"{len(new)} code cells instead of {len(old)}"]
    numbers = [str(number) for number, (a, b) in enumerate(zip(old, new, strict=True), start=1) if a != b]
    return [f"code cell{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} changed"] if numbers else []


def _find_changed_keys(old: Mapping, new: Mapping) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


# --- Published files --------------------------------------------------------------------------------------------------


def describe_damage(files: Mapping[str, str], root: Path) -> list[str]:
    """Describe which published files are missing or differ from their hash; empty when none do.

    files: path below `root` -> content hash.
    """
    hashes = {file: hash_content(root / file) for file in files}
    return [f"{file} {'was edited' if now else 'is missing'}" for file, now in hashes.items() if now != files[file]]


def describe_checkpoint_damage(checkpoints: Mapping[str, str], root: Path) -> list[str]:
    """Describe which checkpoints differ from the recorded ones. A missing one is fine, because a clone has none."""
    return describe_damage({file: value for file, value in checkpoints.items() if (root / file).is_file()}, root)


def hash_content(path: Path) -> str | None:
    """Return the hash of a file's content, or None when there is no such file.

    In an executed notebook only sources and outputs count, because JupyterLab rewrites the rest when it opens the file.
    In a page of docs/ only the generated tables count.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        return _hash(_select_content(path, content))
    except (ValueError, KeyError, TypeError, AttributeError):
        return _hash(content)  # the file is damaged, so its hash differs from the recorded one in any case


def _select_content(path: Path, content: bytes) -> bytes:
    if path.suffix == ".ipynb":
        cells = json.loads(content)["cells"]
        parts = [["".join(cell["source"]), _normalize_outputs(cell.get("outputs"))] for cell in cells]
        return json.dumps(parts).encode()
    if path.parent.name == "docs":
        return "".join(match[0] for match in GENERATED.finditer(content.decode())).encode()
    return content


def _normalize_outputs(value: object) -> object:
    """Drop execution counts and join texts, which a notebook file may also hold as lists of lines."""
    if isinstance(value, dict):
        return {key: _normalize_outputs(item) for key, item in value.items() if key != "execution_count"}
    if isinstance(value, list):
        is_text = all(isinstance(item, str) for item in value)
        return "".join(value) if is_text else [_normalize_outputs(item) for item in value]
    return value


# --- Records ----------------------------------------------------------------------------------------------------------


def read_record(manifest: Path) -> Record | None:
    """Return the record in a manifest; None when there is none or it is damaged, and then the stage runs again."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        is_intact = content.pop("hash") == _hash_manifest(content)
        record = Record(**content["record"], run=content["run"])
        if record.depends is not None:
            describe_changes(record.depends, record.depends)  # KeyError when another version of this project wrote it
        return record if is_intact else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def explain_missing_record(manifest: Path) -> str:
    """Say why read_record returned None."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "first run"
    except (OSError, ValueError):
        return "its manifest is damaged"
    if isinstance(content, dict) and not {"record", "run", "hash"} & content.keys():
        return "published before manifests recorded their run"
    return "its manifest was edited"


def write_manifest(path: Path, notebook_part: Mapping, record: Mapping, run: Mapping) -> None:
    """Write a stage's manifest. notebook_part: what the notebook wrote. record, run: what the runner adds."""
    content = {**notebook_part, "record": record, "run": run}
    content["hash"] = _hash_manifest(content)
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


def read_start_conditions(staging: Path) -> dict | None:
    """Return what the unfinished run in a staging folder depends on; None when there is no unfinished run."""
    try:
        return json.loads((staging / START_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_start_conditions(staging: Path, conditions: Mapping) -> None:
    """Record what a run that starts in a staging folder depends on, so that a later run can resume its training."""
    atomic_write(staging / START_FILE, json.dumps(conditions).encode())


def _hash_manifest(content: Mapping) -> str:
    """Return the hash of a manifest's content without its own hash."""
    return _hash(json.dumps(content).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
