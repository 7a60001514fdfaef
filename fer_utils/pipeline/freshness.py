"""Is a stage up to date? Its manifest in reports/manifests/ says what its published results depend on.

The runner adds three parts to what a notebook wrote there:

record  what the results depend on, and a hash of every file: the same inputs give the same record
run     what happened on the way: times, memory, device, versions, commit. It decides nothing. It differs from run to
        run, so it stands apart; and it stands here, because provenance.json can then be made from manifests alone
hash    of all the rest of the manifest, so that it shows when somebody edits it

A stage is up to date while its record still describes what is there now: the notebook's code, the parameters, the
modules of fer_utils, the data, the published files it reads, and those it made. Git ignores checkpoints, so these may
be missing; those that are there must be the recorded ones.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fer_utils.paths import atomic_write
from fer_utils.pipeline.meaning import cell_hash, module_hashes
from fer_utils.pipeline.notebooks import CodeCell

# The pages into which page.py writes tables, and what it writes there.
GENERATED_PAGES = ("docs/results.md", "docs/running.md")
GENERATED = re.compile(r"<!-- (\w+): generated from .*?<!-- end of \1 -->", re.DOTALL)


@dataclass(frozen=True)
class Record:
    """What a manifest says of the run that published a stage."""

    depends: dict | None  # as `dependencies` returns it; None for a benchmark
    files: dict[str, str]  # published file, relative to the project's root -> content hash
    checkpoints: dict[str, str]  # the same for what git ignores
    run: dict  # times, memory, device, versions, commit

    def all_files(self) -> list[str]:
        """Every published file, relative to the project's root."""
        return [*self.files, *self.checkpoints]

    def facts(self) -> dict:
        """What provenance.json says of the stage; versions stand in the manifest only."""
        facts = {key: self.depends[key] for key in ("profile", "parameters", "data")}
        return facts | {key: value for key, value in self.run.items() if key != "versions"}


# --- What a stage depends on ------------------------------------------------------------------------------------------


def dependencies(
    cells: list[CodeCell],
    parameters: Mapping[str, object],
    package: Path,
    data: str,
    profile: str,
    inputs: Mapping[str, str | None],
) -> dict:
    """Everything that decides what a stage publishes, as it comes back from JSON.

    package: the folder fer_utils. data: form and fingerprint of the data. inputs: file that is read -> its hash.
    The device is no part of it: a report made on a GPU stands where there is none.
    """
    depends = {
        "cells": [cell_hash(cell) for cell in cells],
        "parameters": dict(parameters),
        "modules": module_hashes(cells, package),
        "data": data,
        "profile": profile,
        "inputs": dict(inputs),
    }
    return json.loads(json.dumps(depends))


def differences(old: Mapping, new: Mapping) -> list[str]:
    """What changed between two results of `dependencies`, in words; empty when nothing did."""
    found = [f"{key} {old[key]} -> {new[key]}" for key in ("profile", "data") if old[key] != new[key]]
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


# --- What is published ------------------------------------------------------------------------------------------------


def damaged(files: Mapping[str, str], root: Path) -> list[str]:
    """In words, which published files (path below `root` -> content hash) are missing or differ; empty when intact."""
    found = {file: content_hash(root / file) for file in files}
    return [f"{file} {'was edited' if now else 'is missing'}" for file, now in found.items() if now != files[file]]


def damaged_checkpoints(checkpoints: Mapping[str, str], root: Path) -> list[str]:
    """In words, which checkpoints differ from those recorded; a missing one does not, for a clone has none."""
    return damaged({file: value for file, value in checkpoints.items() if (root / file).is_file()}, root)


def content_hash(path: Path) -> str | None:
    """Hash of a file's content, None when there is no such file.

    Of an executed notebook only the sources and outputs count, because opening it in JupyterLab rewrites the rest; of
    a page of docs/ only what was generated.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        return _hash(_what_counts(path, content))
    except (ValueError, KeyError, TypeError, AttributeError):
        return _hash(content)  # damaged: its bytes differ from what was published, which is all that matters


def _what_counts(path: Path, content: bytes) -> bytes:
    if path.suffix == ".ipynb":
        cells = json.loads(content)["cells"]
        return json.dumps([[_joined(cell["source"]), _plain(cell.get("outputs"))] for cell in cells]).encode()
    if path.parent.name == "docs":
        return "".join(match[0] for match in GENERATED.finditer(content.decode())).encode()
    return content


# --- Records ----------------------------------------------------------------------------------------------------------


def read_record(manifest: Path) -> Record | None:
    """The record in a manifest; None when there is none or when it is damaged, which makes the stage run again."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        intact = content.pop("hash") == _manifest_hash(content)
        record = Record(**content["record"], run=content["run"])
        if record.depends is not None:
            differences(record.depends, record.depends)  # KeyError when another version of this project wrote it
        return record if intact else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def missing_record(manifest: Path) -> str:
    """In words, why read_record finds none in a manifest."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "first run"
    except (OSError, ValueError):
        return "its manifest is damaged"
    if isinstance(content, dict) and not {"record", "run", "hash"} & content.keys():
        return "published before manifests recorded their run"
    return "its manifest was edited"


def write_manifest(path: Path, written: Mapping, record: Mapping, run: Mapping) -> None:
    """Write a stage's manifest. written: by the notebook. record, run: what the runner adds."""
    content = {**written, "record": record, "run": run}
    content["hash"] = _manifest_hash(content)
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


def read_begun(staging: Path) -> dict | None:
    """What the unfinished run in a staging folder depends on; None when there is none."""
    try:
        return json.loads((staging / "begun.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_begun(staging: Path, depends: Mapping) -> None:
    """Record what the run that begins in a staging folder depends on."""
    atomic_write(staging / "begun.json", json.dumps(depends).encode())


def _manifest_hash(content: Mapping) -> str:
    """Hash of all of a manifest but the hash in it."""
    return _hash(json.dumps(content).encode())


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
