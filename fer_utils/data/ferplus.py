"""Load FER+ (Barsoum et al. 2016, arXiv:1608.01041): ten crowd votes for each image of FER2013."""

import csv
import io
import os
from pathlib import Path

import numpy as np

from fer_utils import paths
from fer_utils.data import readers
from fer_utils.data.dataset import FER2013
from fer_utils.data.fer2013 import HOW_TO_GET
from fer_utils.errors import DataError
from fer_utils.files import decoding, read_file, whole_number

FERPLUS_EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FERPLUS_COLUMNS = (*FERPLUS_EMOTIONS, "unknown", "NF")  # NF: no face
OUR_COLUMNS = [4, 5, 6, 1, 3, 2, 0]  # positions of EMOTIONS in FERPLUS_COLUMNS
MAX_TABLE_BYTES = 50_000_000  # of the votes or the row map, which have 2 MB


def find_ferplus(source: Path | None) -> tuple[Path, Path | None] | None:
    """Look for fer2013new.csv and row_of_file.csv beside the data and in data/.

    Returns the paths of the votes and of the row map, which may be None. Returns None if there are no votes.
    """
    beside = [source, source.parent] if source else []
    folders = [*beside, paths.DATA_DIR]
    votes, row_map = (
        next((folder / name for folder in folders if os.path.isfile(folder / name)), None)
        for name in ("fer2013new.csv", "row_of_file.csv")
    )
    return (votes, row_map) if votes else None


def load_ferplus(votes_csv: Path, dataset: FER2013, row_map: Path | None = None) -> np.ndarray:
    """Return the crowd votes (N,10) int64 of every face in `dataset`; columns as in FERPLUS_COLUMNS.

    FER+ labels the rows of fer2013.csv. Faces from a zip or a folder therefore need `row_map`, a CSV with the columns
    path and row. DataError if votes and faces cannot be matched.
    """
    table = _read_columns(votes_csv, ("Usage", *FERPLUS_COLUMNS))
    rows = _official_rows(dataset, row_map)
    split_ids = np.array([readers.USAGES.get(usage.strip().lower(), -1) for usage, *_ in table])
    if rows.max() >= len(table) or (split_ids[rows] != dataset.split_ids).any():
        raise DataError(f"{votes_csv.name} has other rows or splits than the data; download both again")
    return np.array([_to_ints(votes, votes_csv) for _, *votes in table])[rows]


def majority_label(votes: np.ndarray) -> np.ndarray:
    """Turn votes (N,10) into labels (N,): the emotion that got more votes than any other option, or -1 if none did."""
    most = votes.max(1, keepdims=True)  # (N,1)
    is_alone = (votes == most).sum(1) == 1
    emotions = votes[:, OUR_COLUMNS]  # (N,7)
    return np.where(is_alone & (emotions.max(1) == most[:, 0]), emotions.argmax(1), -1)


def _official_rows(dataset: FER2013, row_map: Path | None) -> np.ndarray:
    """Return the row (N,) int64 of every face in fer2013.csv."""
    if dataset.form in ("csv", "icml_csv") and dataset.standard:
        return np.array([int(name.removeprefix("row ")) for name in dataset.names])
    if dataset.form not in ("zip", "folder"):
        raise DataError(f"FER+ votes belong to the official FER2013, not to this data ({dataset.form}); {HOW_TO_GET}")
    if row_map is None:
        raise DataError("FER+ follows the rows of fer2013.csv; put row_of_file.csv beside the data, or use fer2013.csv")
    table = _read_columns(row_map, ("path", "row"))
    row_of = {readers.place_of(path): _to_ints([row], row_map)[0] for path, row in table}
    rows = [row_of.get(readers.place_of(name), -1) for name in dataset.names]
    if min(rows) < 0:
        missing = dataset.names[rows.index(-1)]
        raise DataError(f"{row_map.name} lacks {rows.count(-1):,} images, such as {missing}; use Kaggle's file names")
    return np.array(rows)


def _read_columns(path: Path, columns: tuple[str, ...]) -> list[list[str]]:
    with decoding(f"{path.name} is not a table with the columns {', '.join(columns)}", "download it again"):
        text = io.StringIO(read_file(path, MAX_TABLE_BYTES).decode("utf-8-sig"), newline="")
        return [[row[column] or "" for column in columns] for row in csv.DictReader(text)]


def _to_ints(texts: list[str], path: Path) -> list[int]:
    try:
        return [whole_number(text, highest=readers.MAX_IMAGES) for text in texts]
    except ValueError as error:
        raise DataError(f"{path.name} holds {error}; download it again") from error
