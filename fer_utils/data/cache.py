"""Keep a compact copy of a data set, which loads in a fraction of a second."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fer_utils import paths
from fer_utils.data import readers
from fer_utils.data.dataset import FER2013
from fer_utils.errors import DataError
from fer_utils.files import decoding, open_file, read_arrays
from fer_utils.paths import atomic_write


def cached(name: str, cache_dir: Path | None, key: str, make: Callable[[], FER2013]) -> FER2013:
    """Load the data set from cache_dir/name if it was saved under this key; otherwise make it and save it."""
    path = (cache_dir or paths.DATA_DIR / "cache") / name
    dataset = _read_cache(path, key)
    if dataset is None:
        dataset = make()
        with contextlib.suppress(OSError):  # without a cache only the next load is slower
            _write_cache(path, key, dataset)
    return dataset


def _read_cache(path: Path, key: str) -> FER2013 | None:
    """Read the cached data; None if the file is missing or damaged, or has another key."""
    with contextlib.suppress(DataError), decoding(f"{path.name} is damaged", "delete it"):
        arrays = read_arrays(path, limit=readers.MAX_TOTAL_BYTES)
        facts = json.loads(str(arrays["facts"]))
        if facts.pop("key") == key:
            facts["notes"] = tuple(facts["notes"])
            return FER2013(arrays["images"], arrays["labels"], arrays["split_ids"], arrays["names"], **facts)
    return None


def _write_cache(path: Path, key: str, dataset: FER2013) -> None:
    facts: dict[str, object] = {"key": key, "form": dataset.form, "fingerprint": dataset.fingerprint}
    facts |= {"notes": dataset.notes, "standard": dataset.standard}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=dataset.images,
        labels=dataset.labels,
        split_ids=dataset.split_ids,
        names=dataset.names,
        facts=np.array(json.dumps(facts)),
    )
    atomic_write(path, buffer.getbuffer())


def source_key(path: Path) -> str:
    """Return a key of the state of a source and of the code that reads it, without reading the whole source."""
    code = Path(readers.__file__).read_bytes()
    if path.is_dir():
        files = [(name, entry.stat()) for name, entry in readers.walk_folder(path) if readers.place_of(name)]
        return digest(code, repr(sorted((name, s.st_size, s.st_mtime_ns) for name, s in files)).encode())
    size = path.stat().st_size
    with open_file(path) as stream:
        samples = []
        for position in range(0, size, max(size // 64, 1)):
            stream.seek(position)
            samples.append(stream.read(4096))
    return digest(code, repr((size, path.stat().st_mtime_ns)).encode(), *samples)


def digest(*parts: bytes | np.ndarray) -> str:
    """Hash bytes and arrays; returns 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.data)
    return digest.hexdigest()
