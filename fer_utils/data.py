"""FER2013 (Goodfellow et al. 2013, arXiv:1307.0414) as arrays: find it, load it, check it, cache it.

35,887 grey faces of 48x48 pixels in seven classes. train, val and test are always the challenge's Training, PublicTest
and PrivateTest. `load_data()` is what a notebook needs; without FER2013 it gives the embedded sample and says so.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_utils import readers, sample_faces
from fer_utils.readers import CSV_NAMES, EMOTIONS, SPLITS, DataError, RawFaces

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = PROJECT_ROOT / "data"
KAGGLE_PAGE = "https://www.kaggle.com/datasets/msambare/fer2013"
HOW_TO_GET = f"download archive.zip from {KAGGLE_PAGE} into the project's data folder, or set FER_DATA to its path"

# Images per class, in the order of EMOTIONS.
OFFICIAL_COUNTS = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "val": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}

FERPLUS_EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FERPLUS_COLUMNS = (*FERPLUS_EMOTIONS, "unknown", "NF")  # NF: no face


@dataclass(frozen=True, eq=False)
class FER2013:
    """Labelled faces, ordered train, val, test; inside a split by CSV row, or by (class, file name).

    images (N,48,48) uint8; labels (N,) int64, positions in EMOTIONS; split_ids (N,) int8, positions in SPLITS;
    names (N,) str: the path inside the zip or folder, "row 17" of a CSV (0 is the first), or "sample 17";
    form: "csv", "icml_csv", "zip", "folder" or "sample"; fingerprint: 16 hex digits of images, labels and split_ids;
    notes: what a reader of any result should know; standard: whether every class count is the official one.
    """

    images: np.ndarray
    labels: np.ndarray
    split_ids: np.ndarray
    names: np.ndarray
    form: str
    fingerprint: str
    notes: tuple[str, ...]
    standard: bool

    def where(self, split: str) -> np.ndarray:
        """Return the row numbers (n,) of a split."""
        return np.flatnonzero(self.split_ids == SPLITS.index(split))

    def subset(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the images (n,48,48) and labels (n,) of a split."""
        rows = self.where(split)
        return self.images[rows], self.labels[rows]


def project_path(path: str | Path) -> Path:
    """Return an absolute path; a relative one is taken from the repository root, wherever Python was started."""
    return PROJECT_ROOT / Path(path).expanduser()


def published(inputs: str | Path, stage: str, file: str) -> Path:
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


# --- Find -------------------------------------------------------------------------------------------------------------


def find_data(source: str | Path = "auto") -> Path | None:
    """Return where the data is; None means the embedded sample.

    "sample" is the sample; "auto" is $FER_DATA if set, else what lies in data/, else the sample; anything else is a
    path. DataError if $FER_DATA or the path does not exist or holds no FER2013: nothing is ever substituted for it.
    """
    if source == "sample":
        return None
    if source != "auto":
        return _existing(source, "the data path")
    if os.environ.get("FER_DATA"):
        return _existing(os.environ["FER_DATA"], "FER_DATA")
    return _search(DATA_DIR)


def _existing(source: str | Path, what: str) -> Path:
    path = project_path(source)
    if not path.exists():
        raise DataError(f"{what} {str(source)!r} does not exist; correct it, or {HOW_TO_GET}")
    found = _search(path) if path.is_dir() else path
    if found is None:
        raise DataError(f"{what} {str(source)!r} is a folder without FER2013; correct it, or {HOW_TO_GET}")
    return found


def _search(folder: Path) -> Path | None:
    """Look for FER2013 in a folder and in its subfolders, first by the usual names, then by content."""
    if not folder.is_dir():
        return None
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    for place in [folder, *subfolders]:
        for name in (*CSV_NAMES, "archive.zip", "fer2013.zip"):
            if (place / name).is_file():
                return place / name
        for path in (*sorted(place.glob("*.zip")), *sorted(place.glob("*.csv")), place):
            if readers.is_fer2013(path):
                return path
    return None


def download_fer2013() -> Path:
    """Download msambare/fer2013 from Kaggle into data/fer2013 with kagglehub; return that folder."""
    target, unfinished = DATA_DIR / "fer2013", DATA_DIR / ".fer2013_unfinished"
    if target.exists():
        return target
    try:
        import kagglehub

        kagglehub.dataset_download("msambare/fer2013", output_dir=str(unfinished), force_download=True)
        unfinished.replace(target)
    except Exception as error:  # kagglehub raises many unrelated types: no network, no credentials, quota
        raise DataError(
            f"FER2013 could not be downloaded ({type(error).__name__}); check the network and the Kaggle log-in, "
            f"or {HOW_TO_GET}"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


# --- Load -------------------------------------------------------------------------------------------------------------


def load_data(source: str | Path = "auto", cache_dir: Path | None = None) -> FER2013:
    """Find and load the data (see `find_data`) and print what it is; "auto" without data gives the sample, loudly."""
    path = find_data(source)
    faces = load_fer2013(path, cache_dir) if path else load_sample(cache_dir)
    counts = " / ".join(f"{len(faces.where(split)):,} {split}" for split in SPLITS)
    print(f"{f'FER2013 from {path.name}' if path else 'EMBEDDED SAMPLE'}: {counts} images")
    for note in faces.notes:
        print(f"  note: {note}")
    if source == "auto" and not path:
        print(f"  NO FER2013 WAS FOUND, so this is the sample. For real results {HOW_TO_GET}.")
    return faces


def load_fer2013(path: str | Path, cache_dir: Path | None = None) -> FER2013:
    """Load FER2013 from a CSV, zip or folder, told apart by content; DataError says in a sentence what is wrong.

    The arrays are kept in `cache_dir` (default data/cache), so that the next load takes a fraction of a second.
    """
    path = project_path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; {HOW_TO_GET}")
    cache_name = f"{path.name}-{_digest(str(path.resolve()).encode())[:8]}.npz"
    try:
        return _cached(cache_name, cache_dir, _source_key(path), lambda: _check(readers.read_source(path), path.name))
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror}); check its permissions") from error


def load_sample(cache_dir: Path | None = None) -> FER2013:
    """Load the embedded sample: faces rendered from one photograph, for trying and testing, not for results."""
    made_from = (__file__, sample_faces.__file__, sample_faces.MESH_FILE, sample_faces.STROKES_FILE)
    key = _digest(*(Path(file).read_bytes() for file in made_from))
    return _cached("sample.npz", cache_dir, key, _make_sample)


def _make_sample() -> FER2013:
    sample = sample_faces.make_sample()
    names = np.array([f"sample {i}" for i in range(len(sample.labels))])
    note = "rendered from one photograph, for trying and testing; its numbers say nothing about FER2013"
    return _arrange(RawFaces(sample.images, sample.labels, sample.split, names, "sample"), (note,), standard=False)


def _check(raw: RawFaces, where: str) -> FER2013:
    """Refuse data that lacks a class in a split; note what differs from the official data."""
    counts = {
        split: tuple(np.bincount(raw.labels[raw.split_ids == i], minlength=len(EMOTIONS)).tolist())
        for i, split in enumerate(SPLITS)
    }
    for split in SPLITS:
        for emotion, count in zip(EMOTIONS, counts[split], strict=True):
            if not count:
                raise DataError(f"{where} has no {emotion!r} image in {split}; download the complete data again")
    notes = list(raw.notes)
    if counts != OFFICIAL_COUNTS:
        differ = [
            f"{split} has {sum(counts[split]):,} images (official {sum(OFFICIAL_COUNTS[split]):,})"
            for split in SPLITS
            if counts[split] != OFFICIAL_COUNTS[split]
        ]
        notes.append(f"non-standard data, class counts differ from the official ones: {', '.join(differ)}")
    n_constant = int((raw.images.min((1, 2)) == raw.images.max((1, 2))).sum())
    if n_constant:
        notes.append(f"{n_constant:,} images are constant, a single grey level without a face")
    return _arrange(raw, tuple(notes), standard=counts == OFFICIAL_COUNTS)


def _arrange(raw: RawFaces, notes: tuple[str, ...], standard: bool) -> FER2013:
    order = np.argsort(raw.split_ids, kind="stable")
    images, labels, split_ids = raw.images[order], raw.labels[order], raw.split_ids[order]
    fingerprint = _digest(images, labels, split_ids)
    return FER2013(images, labels, split_ids, raw.names[order], raw.form, fingerprint, notes, standard)


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


def _cached(name: str, cache_dir: Path | None, key: str, make: Callable[[], FER2013]) -> FER2013:
    path = (cache_dir or DATA_DIR / "cache") / name
    faces = _read_cache(path, key)
    if faces is None:
        faces = make()
        with contextlib.suppress(OSError):  # without a cache the next load is slow, that is all
            _write_cache(path, key, faces)
    return faces


def _read_cache(path: Path, key: str) -> FER2013 | None:
    """Return the cached data, or None if there is none, it belongs to another state of the source, or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if arrays.zip.testzip() is not None:  # compares every checksum; NumPy alone lets some damage pass
                return None
            facts = json.loads(str(arrays["facts"]))
            if facts.pop("key") != key:
                return None
            facts["notes"] = tuple(facts["notes"])
            return FER2013(*(arrays[name] for name in ("images", "labels", "split_ids", "names")), **facts)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, struct.error):
        return None


def _write_cache(path: Path, key: str, faces: FER2013) -> None:
    facts = {"key": key, "form": faces.form, "fingerprint": faces.fingerprint}
    facts |= {"notes": faces.notes, "standard": faces.standard}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=faces.images,
        labels=faces.labels,
        split_ids=faces.split_ids,
        names=faces.names,
        facts=np.array(json.dumps(facts)),
    )
    atomic_write(path, buffer.getbuffer())


def _source_key(path: Path) -> str:
    """Return a cheap key of the state of a source and of the code that reads it."""
    code = Path(__file__).read_bytes() + Path(readers.__file__).read_bytes()
    if path.is_dir():
        files = [(name, entry.stat()) for name, entry in readers.walk_folder(path) if readers.place_of(name)]
        return _digest(code, repr(sorted((name, s.st_size, s.st_mtime_ns) for name, s in files)).encode())
    size = path.stat().st_size
    with path.open("rb") as stream:
        samples = []
        for position in range(0, size, max(size // 64, 1)):
            stream.seek(position)
            samples.append(stream.read(4096))
    return _digest(code, repr((size, path.stat().st_mtime_ns)).encode(), *samples)


def _digest(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


# --- Duplicates and crowd votes ---------------------------------------------------------------------------------------


def duplicate_groups(images: np.ndarray) -> np.ndarray:
    """Number images (N,...) so that the same number (N,) int64 means identical pixels; numbers count up from 0."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(image.tobytes(), len(numbers)) for image in images], np.int64)


def copies_in_train(faces: FER2013) -> np.ndarray:
    """Return (N,) bool: images outside train whose exact pixels a model has also seen in train."""
    groups = duplicate_groups(faces.images)
    return (faces.split_ids != 0) & np.isin(groups, groups[faces.where("train")])


def find_ferplus(source: Path | None) -> tuple[Path, Path | None] | None:
    """Look for fer2013new.csv and row_of_file.csv beside the data and in data/; (votes, row map or None), or None."""
    beside = [source, source.parent] if source else []
    folders = [*beside, DATA_DIR]
    votes, row_map = (
        next((folder / name for folder in folders if (folder / name).is_file()), None)
        for name in ("fer2013new.csv", "row_of_file.csv")
    )
    return (votes, row_map) if votes else None


def load_ferplus(votes_csv: Path, faces: FER2013, row_map: Path | None = None) -> np.ndarray:
    """Return the ten crowd votes of every face, (N,10) int64 in the order of FERPLUS_COLUMNS and of `faces`.

    FER+ (Barsoum et al. 2016, arXiv:1608.01041) labels the rows of fer2013.csv. Faces from a zip or folder need
    `row_map`, a CSV with the columns path and row that names the row of each file. DataError if they cannot be aligned.
    """
    table = _read_columns(votes_csv, ("Usage", *FERPLUS_COLUMNS))
    rows = _official_rows(faces, row_map)
    split_ids = np.array([readers.USAGES.get(usage.strip().lower(), -1) for usage, *_ in table])
    if rows.max() >= len(table) or (split_ids[rows] != faces.split_ids).any():
        raise DataError(f"{votes_csv.name} has other rows or splits than the data; download both again")
    return np.array([_to_ints(votes, votes_csv) for _, *votes in table])[rows]


def _official_rows(faces: FER2013, row_map: Path | None) -> np.ndarray:
    """Return the row of fer2013.csv (N,) int64 of every face."""
    if faces.form in ("csv", "icml_csv") and faces.standard:
        return np.array([int(name.removeprefix("row ")) for name in faces.names])
    if faces.form not in ("zip", "folder"):
        raise DataError(f"FER+ votes belong to the official FER2013, not to this data ({faces.form}); {HOW_TO_GET}")
    if row_map is None:
        raise DataError("FER+ follows the rows of fer2013.csv; put row_of_file.csv beside the data, or use fer2013.csv")
    table = _read_columns(row_map, ("path", "row"))
    row_of = {readers.place_of(path): _to_ints([row], row_map)[0] for path, row in table}
    rows = [row_of.get(readers.place_of(name), -1) for name in faces.names]
    if min(rows) < 0:
        missing = faces.names[rows.index(-1)]
        raise DataError(f"{row_map.name} lacks {rows.count(-1):,} images, such as {missing}; use Kaggle's file names")
    return np.array(rows)


def _read_columns(path: Path, columns: tuple[str, ...]) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [[row[column] or "" for column in columns] for row in csv.DictReader(stream)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} is no table with the columns {', '.join(columns)}; download it again") from error


def _to_ints(texts: list[str], path: Path) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise DataError(f"{path.name} holds text instead of a number ({error}); download it again") from error
