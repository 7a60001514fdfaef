"""Load FER2013 (Goodfellow et al. 2013, arXiv:1307.0414) as arrays: find it, read it, check it, cache it.

FER2013 has 35,887 gray faces of 48x48 pixels in seven classes. The splits train, val and test are always the
challenge's Training, PublicTest and PrivateTest. A notebook calls `load_data()`; without FER2013 this returns the
embedded sample and prints a warning.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from fer_utils import paths
from fer_utils.data import readers, sample_faces
from fer_utils.data.cache import cached, digest, source_key
from fer_utils.data.constants import EMOTIONS, OFFICIAL_COUNTS, SPLITS
from fer_utils.data.dataset import FER2013
from fer_utils.data.readers import CSV_NAMES, RawFaces
from fer_utils.errors import DataError
from fer_utils.files import readable, require_text
from fer_utils.paths import project_path

KAGGLE_PAGE = "https://www.kaggle.com/datasets/msambare/fer2013"
HOW_TO_GET = f"download archive.zip from {KAGGLE_PAGE} into the project's data folder, or set FER_DATA to its path"


def load_data(source: str | Path = "auto", cache_dir: Path | None = None) -> FER2013:
    """Find the data (see `find_data`), load it and print what it is.

    With "auto" and no data, this loads the embedded sample and prints a warning.
    """
    path = find_data(source)
    dataset = load_fer2013(path, cache_dir) if path else load_sample(cache_dir)
    counts = " / ".join(f"{len(dataset.where(split)):,} {split}" for split in SPLITS)
    print(f"{f'FER2013 from {path.name}' if path else 'EMBEDDED SAMPLE'}: {counts} images")
    for note in dataset.notes:
        print(f"  note: {note}")
    if source == "auto" and not path:
        print(f"  NO FER2013 WAS FOUND, so this is the sample. For real results {HOW_TO_GET}.")
    return dataset


# --- Find -------------------------------------------------------------------------------------------------------------


def find_data(source: str | Path = "auto") -> Path | None:
    """Return the path of the data; None means the embedded sample.

    source: "sample" for the embedded sample, "auto", or a path. "auto" takes $FER_DATA if it is set, otherwise the
    data in data/, otherwise the sample. DataError if $FER_DATA or the path does not exist, cannot be read or holds no
    FER2013: other data never takes its place.
    """
    if source == "sample":
        return None
    with readable(source if source != "auto" else paths.DATA_DIR):
        path: Path | None
        if source != "auto":
            path = _existing(source, "the data path")
        elif os.environ.get("FER_DATA"):
            path = _existing(os.environ["FER_DATA"], "FER_DATA")
        else:
            path = _search(paths.DATA_DIR)
    if path:
        require_text(path)
    return path


def _existing(source: str | Path, what: str) -> Path:
    if not str(source).strip():
        raise DataError(f"{what} is empty; give the path of FER2013, or leave it out")
    path = project_path(source)
    if not path.exists():
        raise DataError(f"{what} {str(source)!r} does not exist; correct it, or {HOW_TO_GET}")
    data = _search(path) if path.is_dir() else path
    if data is None:
        raise DataError(f"{what} {str(source)!r} is a folder without FER2013; correct it, or {HOW_TO_GET}")
    return data


def _search(folder: Path) -> Path | None:
    """Look for FER2013 in a folder and its subfolders, first by the usual names, then by content."""
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
    """Download msambare/fer2013 from Kaggle into data/fer2013 with kagglehub and return that folder."""
    target, unfinished = paths.DATA_DIR / "fer2013", paths.DATA_DIR / ".fer2013_unfinished"
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


# --- Read and check ---------------------------------------------------------------------------------------------------


def load_fer2013(path: str | Path, cache_dir: Path | None = None) -> FER2013:
    """Load FER2013 from a CSV file, a zip or a folder; the content decides which it is.

    The arrays are cached in `cache_dir` (default data/cache), so the next load takes a fraction of a second. DataError
    explains what is wrong with the data in one sentence.
    """
    path = project_path(path)
    require_text(path)
    with readable(path):
        if not path.exists():
            raise DataError(f"{path} does not exist; {HOW_TO_GET}")
        cache_name = f"{path.name}-{digest(os.fsencode(path.resolve()))[:8]}.npz"
        return cached(cache_name, cache_dir, source_key(path), lambda: _check(readers.read_source(path), path.name))


def _check(raw: RawFaces, where: str) -> FER2013:
    """Refuse data without images of some class in some split; note differences from the official data."""
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
        notes.append(f"{n_constant:,} images are constant, a single gray level without a face")
    return _arrange(raw, tuple(notes), standard=counts == OFFICIAL_COUNTS)


def load_sample(cache_dir: Path | None = None) -> FER2013:
    """Load the embedded sample: faces rendered from one photograph, for tests and first steps, not for results."""
    made_from = (sample_faces.__file__, sample_faces.MESH_FILE, sample_faces.STROKES_FILE)
    key = digest(*(Path(file).read_bytes() for file in made_from))
    return cached("sample.npz", cache_dir, key, _make_sample)


def _make_sample() -> FER2013:
    sample = sample_faces.make_sample()
    names = np.array([f"sample {i}" for i in range(len(sample.labels))])
    note = "rendered from one photograph, for trying out the code; its numbers say nothing about FER2013"
    return _arrange(RawFaces(sample.images, sample.labels, sample.split, names, "sample"), (note,), standard=False)


def _arrange(raw: RawFaces, notes: tuple[str, ...], standard: bool) -> FER2013:
    """Order the rows train, val, test and compute the fingerprint."""
    order = np.argsort(raw.split_ids, kind="stable")
    images, labels, split_ids = raw.images[order], raw.labels[order], raw.split_ids[order]
    fingerprint = digest(images, labels, split_ids)
    return FER2013(images, labels, split_ids, raw.names[order], raw.form, fingerprint, notes, standard)
