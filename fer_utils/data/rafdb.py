"""Load RAF-DB (Li, Deng & Du 2017, "Reliable crowdsourcing ... in the wild"): color faces of 100x100 pixels.

RAF-DB is licensed on request, for research, so the project does not include it. Two layouts can be read. The original
one has the folders Image/aligned and EmoLabel. The other has class folders, DATASET/train/1 to DATASET/test/7, and two
tables of labels. Every problem raises a `DataError` with one sentence: what is wrong, where, and how to fix it.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fer_utils.data.cache import digest
from fer_utils.data.constants import EMOTIONS, SPLITS
from fer_utils.data.dataset import FaceDataset
from fer_utils.data.readers import MAX_IMAGE_BYTES, cut_validation, decode_image, is_hidden
from fer_utils.errors import DataError
from fer_utils.files import decoding, read_file, readable
from fer_utils.paths import project_path

SIDE = 100
CLASSES = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")  # numbers 1 to 7
OFFICIAL_COUNTS = {"train": 12_271, "test": 3_068}
LABEL_LIST = Path("EmoLabel") / "list_patition_label.txt"  # the typo is in the original
MAX_TABLE_BYTES = 10_000_000  # of a list of labels, which has 0.3 MB
HOW_TO_GET = "ask its authors for the basic set and give the folder that holds it"


class RafDB(FaceDataset):
    """RAF-DB: color images (N,3,100,100), with the classes in the order of FER2013. A name is the name of the file."""


@dataclass(frozen=True)
class Entry:
    """One image in the list of the data set."""

    file: Path
    split: str  # "train" or "test"
    label: int  # position in EMOTIONS


def load_rafdb(path: str | Path) -> RafDB:
    """Read RAF-DB from its folder; 10 % of every class of train become val.

    DataError if the folder holds no RAF-DB, or if a label or an image cannot be used.
    """
    with readable(path):
        root, form = find_rafdb(path)
        entries = read_label_list(root) if form == "original" else read_class_folders(root)
    _require_classes(entries, root)
    entries.sort(key=lambda entry: (SPLITS.index(entry.split), entry.file.name))
    decoded = [decode_face(entry.file) for entry in entries]
    return _assemble(entries, np.stack([image for image, _ in decoded]), sum(changed for _, changed in decoded))


def find_rafdb(path: str | Path) -> tuple[Path, str]:
    """Return the folder of RAF-DB, which is `path` or a folder in it, and its layout: "original" or "folders"."""
    path = project_path(path)
    if not path.exists():
        raise DataError(f"the RAF-DB path {str(path)!r} does not exist; correct it, or {HOW_TO_GET}")
    if not path.is_dir():
        raise DataError(f"{path.name} is a file; unpack RAF-DB and give the folder that holds it")
    for folder in (path, *sorted(inner for inner in path.iterdir() if inner.is_dir())):
        if (folder / LABEL_LIST).is_file():
            return folder, "original"
        if any((base / "train" / "1").is_dir() for base in (folder / "DATASET", folder)):
            return folder, "folders"
    raise DataError(
        f"{path} is not RAF-DB: there is neither {LABEL_LIST.as_posix()} nor DATASET/train/1 in it; "
        f"correct the path, or {HOW_TO_GET}"
    )


def read_label_list(root: Path) -> list[Entry]:
    """List the images of the original layout: "train_00001.jpg 5" stands for Image/aligned/train_00001_aligned.jpg."""
    source = root / LABEL_LIST
    entries, seen = [], set()
    lines = read_file(source, MAX_TABLE_BYTES).decode("utf-8-sig", errors="replace").splitlines()
    if lines and lines[0].lower().startswith(("version https://git-lfs", "<!doctype", "<html")):
        raise DataError(f"{source} is a git-LFS pointer or a web page, not the labels; download it again")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, text = " ".join(line.split()).partition(" ")
        where = f"{source.name}, line {number} ({line.strip()[:40]!r}),"
        split = split_of(name, where)
        if name in seen:
            raise DataError(f"{where} names an image for the second time; keep one of the two lines")
        seen.add(name)
        stem = PurePosixPath(name).stem
        entries.append(Entry(root / "Image" / "aligned" / f"{stem}_aligned.jpg", split, label_of(text, where)))
    _require_files(entries, source.name)
    return entries


def read_class_folders(root: Path) -> list[Entry]:
    """List the images of the layout with class folders.

    If there are tables train_labels.csv and test_labels.csv, they must agree with the folders.
    """
    base = root / "DATASET" if (root / "DATASET").is_dir() else root
    entries = []
    for split in ("train", "test"):
        images = [
            Entry(file, split, label_of(folder.name, f"{folder}"))
            for folder in sorted((base / split).glob("[1-7]"))
            for file in sorted(folder.iterdir())
            if not file.is_dir() and not is_hidden(file.name)
        ]
        for place in dict.fromkeys((root, base)):
            if (place / f"{split}_labels.csv").is_file():
                _compare(images, place / f"{split}_labels.csv")
        entries += images
    return entries


def split_of(name: str, where: str) -> str:
    """Return the split with which a file name begins; DataError for any other name, or one that leaves the folder."""
    split = name.split("_")[0].lower()
    if split not in OFFICIAL_COUNTS or PurePosixPath(name).name != name or "\\" in name:
        raise DataError(f"{where} should begin with a name like train_00001.jpg or test_0001.jpg; correct the file")
    return split


def label_of(text: str, where: str) -> int:
    """Convert a RAF-DB label, 1 to 7, to its position in EMOTIONS; DataError for anything else."""
    if text not in set("1234567"):
        raise DataError(f"{where} should have a label from 1 to 7, not {text!r}; correct it or download it again")
    return EMOTIONS.index(CLASSES[int(text) - 1])


def decode_face(file: Path) -> tuple[np.ndarray, bool]:
    """Decode an image file to (3,100,100) uint8; also return whether it had to be converted."""
    face, converted = decode_image(read_file(file, MAX_IMAGE_BYTES), str(file), mode="RGB", side=SIDE)
    return face.transpose(2, 0, 1), converted


def _require_files(entries: list[Entry], source: str) -> None:
    missing = [entry.file for entry in entries if not entry.file.is_file()]
    if missing:
        raise DataError(
            f"{source} names {len(missing):,} images that are not there, such as {missing[0]}; unpack them, too"
        )


def _compare(images: list[Entry], table: Path) -> None:
    """Raise DataError unless a table with the columns image and label lists exactly these files and labels."""
    with decoding(f"{table.name} cannot be read as a table", "download it again"):
        text = io.StringIO(read_file(table, MAX_TABLE_BYTES).decode("utf-8-sig", errors="replace"), newline="")
        rows = list(csv.DictReader(text))
    if not rows or not {"image", "label"} <= set(rows[0]):
        raise DataError(f"{table.name} should have the columns image and label; download it again")
    listed = {
        row["image"] or "": label_of(row["label"] or "", f"{table.name}, row {i},") for i, row in enumerate(rows, 1)
    }
    here = {entry.file.name: entry.label for entry in images}
    differ = sorted(name for name in {*listed, *here} if listed.get(name) != here.get(name))
    if differ:
        raise DataError(
            f"{table.name} and the folders differ for {len(differ):,} images, such as {differ[0]}; download both again"
        )


def _require_classes(entries: list[Entry], where: Path) -> None:
    present = {(entry.split, entry.label) for entry in entries}
    for split in OFFICIAL_COUNTS:
        for label, emotion in enumerate(EMOTIONS):
            if (split, label) not in present:
                raise DataError(f"{where} has no {emotion!r} image in {split}; unpack the complete data again")


def _assemble(entries: list[Entry], images: np.ndarray, converted: int) -> RafDB:
    """Order the images train, val, test, and note everything unusual about the data."""
    labels = np.array([entry.label for entry in entries], np.int64)
    split_ids = np.array([SPLITS.index(entry.split) for entry in entries], np.int8)
    counts = {split: int((split_ids == SPLITS.index(split)).sum()) for split in OFFICIAL_COUNTS}
    notes = ["RAF-DB has no validation split: 10 % of every class of train became val"]
    if counts != OFFICIAL_COUNTS:
        notes.append(f"non-standard data: {counts['train']:,} / {counts['test']:,} images, not 12,271 / 3,068")
    if converted:
        notes.append(f"{converted:,} images were not {SIDE}x{SIDE} and in color, and were converted")
    constant = int((images.min((1, 2, 3)) == images.max((1, 2, 3))).sum())
    if constant:
        notes.append(f"{constant:,} images are constant, a single color without a face")
    split_ids = cut_validation(labels, split_ids)
    order = np.argsort(split_ids, kind="stable")
    arrays = np.ascontiguousarray(images[order]), labels[order], split_ids[order]
    names = np.array([entry.file.name for entry in entries])[order]
    return RafDB(*arrays, names, "rafdb", digest(*arrays), tuple(notes), standard=counts == OFFICIAL_COUNTS)
