"""Read FER2013 in all its common forms: fer2013.csv, icml_face_data.csv, Kaggle's archive.zip, or its folders.

`read_source` looks at the content, not at the file extension, and returns plain arrays. Every problem with the source
raises a `DataError` with one sentence: what is wrong, where, and how to fix it.
"""

import contextlib
import csv
import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

import numpy as np
from PIL import Image

from fer_utils.data.constants import EMOTIONS, IMAGE_SIZE
from fer_utils.errors import DataError, printable
from fer_utils.files import decoding, open_file, whole_number

CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
PIXELS = IMAGE_SIZE * IMAGE_SIZE
VAL_FRACTION = 0.1  # of train, if the source has no validation split
VAL_SEED = 2013

# Limits far above the real data set, so that a malicious or wrong source cannot fill the memory.
MAX_TOTAL_BYTES = 2_000_000_000
MAX_IMAGE_BYTES = 16_000_000
MAX_IMAGE_SIDE = 4096
MAX_IMAGES = 100_000  # also the lines of a CSV
MAX_LINE_BYTES = 131_072  # the csv module refuses longer fields

USAGES = {"training": 0, "publictest": 1, "privatetest": 2}
SPLIT_FOLDERS = USAGES | {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
CLASS_FOLDERS = {name: label for label, name in enumerate(EMOTIONS)} | {
    "anger": 0,
    "disgusted": 1,
    "fearful": 2,
    "happiness": 3,
    "sadness": 4,
    "surprised": 5,
}
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")


@dataclass(frozen=True, eq=False)
class RawFaces:
    """The faces of one source, in its own order and not yet checked for completeness."""

    images: np.ndarray  # (N,48,48) uint8
    labels: np.ndarray  # (N,) int64: positions in EMOTIONS
    split_ids: np.ndarray  # (N,) int8: positions in SPLITS
    names: np.ndarray  # (N,) str: path or row of each image
    form: str  # "csv", "icml_csv", "zip", "folder" or "sample"
    notes: tuple[str, ...] = ()  # what a reader of any result should know about the data


def read_source(path: Path) -> RawFaces:
    """Read FER2013 from a CSV file, a zip or a folder; the content decides which it is."""
    if path.is_dir():
        return read_folder(path)
    with open_file(path) as stream:
        read = read_zip if sniff(stream, path.name) == "zip" else read_csv
        return read(stream, path.name)


def is_fer2013(path: Path) -> bool:
    """Check whether a file or folder looks like FER2013, by its header or folder names; no image is decoded.

    DataError or OSError if it cannot be opened at all.
    """
    if path.is_dir():
        return any(place_of(name) for name, _ in walk_folder(path, depth=3))
    with open_file(path) as stream, contextlib.suppress(DataError):
        if sniff(stream, path.name) == "zip":
            names = open_zip(stream, path.name).namelist()
            return any(place_of(name) or _parts(name)[-1] in CSV_NAMES for name in names)
        find_columns(_open_text(stream).readline(MAX_LINE_BYTES), path.name)
        return True
    return False


def sniff(stream: io.BufferedReader, where: str) -> str:
    """Return "zip" or "csv", by content; DataError for files that are often mistaken for the CSV."""
    head = stream.peek(512)[:512]
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise DataError(f"{where} is empty; download it again")
    if text.startswith(b"version https://git-lfs"):
        raise DataError(f"{where} is a git-LFS pointer, not the data; fetch the file itself with 'git lfs pull'")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{where} is a web page, probably a log-in page; log in to Kaggle and download it again")
    if head.startswith(b"\x1f\x8b"):
        raise DataError(f"{where} is a gzip archive; unpack it (tar xf) and use the fer2013.csv inside")
    return "csv"


# --- CSV --------------------------------------------------------------------------------------------------------------


def read_csv(stream: io.BufferedReader | zipfile.ZipExtFile, where: str) -> RawFaces:
    """Read fer2013.csv or icml_face_data.csv row by row; all rows are read before a fault is reported.

    `parse_row` is fast and only accepts or refuses a row; `explain_row` then explains what is wrong.
    """
    lines = _capped_lines(_open_text(stream), where)
    separator, columns = find_columns(next(lines, ""), where)
    faces, number = [], -1
    faults: dict[str, Fault] = {}
    for number, row in enumerate(_split_lines(lines, separator, where)):
        try:
            faces.append(parse_row(row, columns))
        except (ValueError, IndexError, KeyError):
            name, example = explain_row(row, columns)
            faults.setdefault(name, Fault(name, example)).count_row(number)
    if faults:
        raise DataError(next(iter(faults.values())).describe(where, last_row=number))
    if not faces:
        raise DataError(f"{where} has a header but no rows; download it again")
    images, labels, split_ids = zip(*faces, strict=True)
    return RawFaces(
        np.stack(images),
        np.array(labels, np.int64),
        np.array(split_ids, np.int8),
        np.array([f"row {i}" for i in range(len(faces))]),
        form="icml_csv" if columns[2] < columns[1] else "csv",
    )


@dataclass
class Fault:
    """One kind of fault in a CSV."""

    name: str  # as in "3 rows have <name>"
    example: str  # from the first of its rows
    count: int = 0  # of its rows
    rows: list[int] = field(default_factory=list)  # the numbers of the first five

    def count_row(self, number: int) -> None:
        """Add a row with this fault."""
        self.count += 1
        if len(self.rows) < 5:
            self.rows.append(number)

    def describe(self, where: str, last_row: int) -> str:
        """Return the sentence about this fault. last_row: of the CSV."""
        if self.rows == [last_row]:
            what = f"row {last_row}, the last one, has {self.name} ({self.example})"
            return f"{where}: {what}; if it is cut off, download it again"
        count = "1 row has" if self.count == 1 else f"{self.count:,} rows have"
        numbers = ", ".join(map(str, self.rows)) + (", ..." if self.count > 5 else "")
        return (
            f"{where}: {count} {self.name} (for example {self.example}): row {numbers}, where row 0 is the first below "
            "the header; correct the file or download it again"
        )


def find_columns(header: str, where: str) -> tuple[str, tuple[int, int, int]]:
    """Return the separator and the positions of emotion, pixels and Usage in the first line of a CSV."""
    for separator in ",;\t":
        titles = [title.strip(' "\r\n').lower() for title in header.split(separator)]
        if {"emotion", "pixels", "usage"} <= set(titles):
            return separator, (titles.index("emotion"), titles.index("pixels"), titles.index("usage"))
    raise DataError(
        f"{where} is not FER2013: its first line should name the columns emotion, pixels and Usage but reads "
        f"{header[:50].strip()!r}; use fer2013.csv, icml_face_data.csv or Kaggle's archive.zip"
    )


def parse_row(row: list[str], columns: tuple[int, int, int]) -> tuple[np.ndarray, int, int]:
    """Return image (48,48) uint8, label and split id of a row; ValueError, IndexError or KeyError for a bad row."""
    emotion, text, usage = (row[column] for column in columns)
    label, digits = whole_number(emotion, highest=len(EMOTIONS) - 1), text.replace(" ", "")
    if not (digits.isascii() and digits.isdecimal()):
        raise ValueError("not whole numbers")
    pixels = np.fromstring(text, np.int64, sep=" ")  # 64 bits, so that 256 is refused instead of wrapping around to 0
    if pixels.max() > 255:
        raise ValueError("out of range")
    # reshape refuses any other number of pixels
    return pixels.astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE), label, USAGES[usage.strip().lower()]


def explain_row(row: list[str], columns: tuple[int, int, int]) -> tuple[str, str]:
    """Explain why `parse_row` refused a row: the kind of fault, and the example in this row."""
    if len(row) <= max(columns):
        return "missing columns", f"{len(row)} instead of {max(columns) + 1}"
    emotion, text, usage = (row[column] for column in columns)
    n_pixels = len(text.split())
    if n_pixels != PIXELS:
        return f"a number of pixels other than {PIXELS:,}", f"{n_pixels:,}"
    for pixel in text.split(" "):
        if pixel and not (pixel.isascii() and pixel.isdecimal() and float(pixel) <= 255):
            return "a pixel that is not a whole number from 0 to 255", repr(pixel[:20])
    if usage.strip().lower() not in USAGES:
        return "a Usage other than Training, PublicTest and PrivateTest", repr(usage[:20])
    return "a label that is not a whole number from 0 to 6", repr(emotion[:20])


def _split_lines(lines: Iterator[str], separator: str, where: str) -> Iterator[list[str]]:
    rows = csv.reader(lines, delimiter=separator)
    try:
        yield from filter(None, rows)  # blank lines give empty rows
    except csv.Error as error:
        raise DataError(f"{where}: line {rows.line_num} cannot be read ({error}); download the file again") from error


def _open_text(stream: io.BufferedReader | zipfile.ZipExtFile) -> TextIO:
    head = stream.peek(2)[:2]
    encoding = "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(stream, encoding, errors="replace", newline="")


def _capped_lines(text: TextIO, where: str) -> Iterator[str]:
    total = number = 0
    while line := text.readline(MAX_LINE_BYTES):
        total, number = total + len(line), number + 1
        if number > MAX_IMAGES:
            raise DataError(f"{where} holds more than {MAX_IMAGES:,} lines, so it is not FER2013 (35,888)")
        if total > MAX_TOTAL_BYTES:
            raise DataError(f"{where} holds more than {MAX_TOTAL_BYTES:,} bytes, so it is not FER2013 (0.3 GB)")
        yield line


# --- Images in a zip or a folder --------------------------------------------------------------------------------------


def read_zip(stream: BinaryIO, where: str) -> RawFaces:
    """Read train/<class>/* and test/<class>/* from a zip, or the CSV in it, without unpacking it to disk."""
    archive = open_zip(stream, where)
    members = [member for member in archive.infolist() if not member.is_dir()]
    _refuse_unsafe(members, where)
    names = [member.filename for member in members]
    tables = [name for table in CSV_NAMES for name in names if _parts(name)[-1] == table]
    if tables and not any(map(place_of, names)):
        with decoding(f"{where}/{tables[0]} cannot be read", "download the zip again"):
            return read_csv(cast(zipfile.ZipExtFile, archive.open(tables[0])), f"{where}/{tables[0]}")
    return _read_images(names, _CappedReader(archive.open, where), where, form="zip")


def open_zip(stream: BinaryIO, where: str) -> zipfile.ZipFile:
    """Read the list of files in a zip; DataError if it is damaged."""
    with decoding(f"{where} is a damaged or unfinished zip", "download it again"):
        return zipfile.ZipFile(stream)


def read_folder(root: Path) -> RawFaces:
    """Read train/<class>/* and test/<class>/* below a folder."""
    names = [name for name, _ in walk_folder(root)]
    return _read_images(names, _CappedReader(lambda name: open_file(root / name), root.name), root.name, form="folder")


def walk_folder(root: Path, depth: int = 4, prefix: str = "") -> Iterator[tuple[str, os.DirEntry]]:
    """Yield the path relative to root and the entry of every file at most `depth` levels down; follows links."""
    for entry in os.scandir(root):
        if not entry.is_dir():
            yield prefix + entry.name, entry
        elif depth > 1:
            yield from walk_folder(Path(entry.path), depth - 1, f"{prefix}{entry.name}/")


def place_of(name: str) -> tuple[int, int, str] | None:
    """Return split id, label and file name of a path that ends in split/class/file; None for any other path.

    Kaggle's test folder holds both PublicTest and PrivateTest. If a file name begins with Training_, PublicTest_ or
    PrivateTest_, this name decides about the split, not the folder.
    """
    parts = _parts(name)
    if len(parts) < 3 or is_hidden(name):
        return None
    split_id, label = SPLIT_FOLDERS.get(parts[-3].lower()), CLASS_FOLDERS.get(parts[-2].lower())
    if split_id is None or label is None:
        return None
    return USAGES.get(parts[-1].split("_")[0].lower(), split_id), label, parts[-1]


def is_hidden(name: str) -> bool:
    """Check for files that operating systems leave behind: .DS_Store, __MACOSX/..., Thumbs.db, desktop.ini."""
    parts = _parts(name)
    return parts[-1].lower() in ("thumbs.db", "desktop.ini") or any(p.startswith((".", "__MACOSX")) for p in parts)


def decode_image(data: bytes, where: str, mode: str = "L", side: int = IMAGE_SIZE) -> tuple[np.ndarray, bool]:
    """Decode an image file to (side,side) or (side,side,3) uint8; also return whether it had to be converted.

    mode: "L" for gray levels, "RGB" for colors.
    """
    with decoding(f"{where} is not a readable image", "replace or delete it"):
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        except Image.UnidentifiedImageError:
            raise ValueError("unknown format") from None
        if max(image.size) > MAX_IMAGE_SIDE or image.mode.startswith(("I", "F")):
            raise ValueError(f"{image.width} x {image.height} pixels of type {image.mode}")
        if image.mode == mode and image.size == (side, side):
            return np.asarray(image), False
        return np.asarray(image.convert(mode).resize((side, side), Image.Resampling.BILINEAR)), True


def cut_validation(labels: np.ndarray, split_ids: np.ndarray) -> np.ndarray:
    """Return split_ids (N,) after moving 10 % of every class of train to val; the same images every time."""
    split_ids = split_ids.copy()
    generator = np.random.default_rng(VAL_SEED)
    for label in range(len(EMOTIONS)):
        rows = generator.permutation(np.flatnonzero((labels == label) & (split_ids == 0)))
        split_ids[rows[: max(1, round(VAL_FRACTION * len(rows)))]] = 1
    return split_ids


def _read_images(names: list[str], read: Callable[[str], bytes], where: str, form: str) -> RawFaces:
    files = _find_images(names, where)
    images = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    converted = 0
    for i, (*_, name) in enumerate(files):
        images[i], changed = decode_image(read(name), f"{where}/{name}")
        converted += changed
    split_ids, labels = np.array([f[0] for f in files], np.int8), np.array([f[1] for f in files], np.int64)
    notes = []
    left_out = [name for name in names if _is_in_split_folder(name) and not (place_of(name) or is_hidden(name))]
    if left_out:
        example = printable(min(left_out))
        notes.append(f"{len(left_out):,} files are in none of the seven class folders, such as {example}: left out")
    if converted:
        notes.append(f"{converted:,} images were not 48x48 gray and were converted")
    if not (split_ids == 1).any():
        split_ids = cut_validation(labels, split_ids)
        notes.append("no validation split in the file or folder names: 10 % of every class of train became val")
    return RawFaces(images, labels, split_ids, np.array([f[3] for f in files]), form, tuple(notes))


def _find_images(names: list[str], where: str) -> list[tuple[int, int, str, str]]:
    """Return split id, label, file name and name of every image, sorted in this order."""
    files = sorted((*place, name) for name in names if (place := place_of(name)))
    if not files:
        raise DataError(f"{where} is not FER2013: it holds neither train/<class>/ and test/<class>/ nor fer2013.csv")
    if len(files) > MAX_IMAGES:
        raise DataError(f"{where} holds more than {MAX_IMAGES:,} images, so it is not FER2013 (35,887)")
    roots = sorted({"/".join(_parts(name)[:-3]) or "." for *_, name in files})
    if len(roots) > 1:
        raise DataError(f"{where} holds more than one data set, in {roots[0]} and {roots[1]}; keep one of them")
    return files


def _is_in_split_folder(name: str) -> bool:
    return _parts(name)[-3:][0].lower() in SPLIT_FOLDERS


class _CappedReader:
    """Reads files of a zip or a folder and counts their bytes: the sizes written in a zip may be wrong."""

    def __init__(self, open_member: Callable[[str], IO[bytes]], where: str) -> None:
        self.open_member, self.where, self.total = open_member, where, 0

    def __call__(self, name: str) -> bytes:
        problem, fix = f"{self.where}/{name} cannot be read", "replace it or download the data again"
        with decoding(problem, fix), self.open_member(name) as stream:
            data = stream.read(MAX_IMAGE_BYTES + 1)
        self.total += len(data)
        if len(data) > MAX_IMAGE_BYTES or self.total > MAX_TOTAL_BYTES:
            raise DataError(f"{self.where}/{name} holds far more bytes than FER2013; replace it with the original")
        return data


def _refuse_unsafe(members: list[zipfile.ZipInfo], where: str) -> None:
    """Raise DataError for paths that leave the folder, links, and files that occur twice."""
    seen, original = set(), "download the original zip from Kaggle"
    for member in members:
        parts = _parts(member.filename)
        if parts[0] == "" or parts[0].endswith(":") or ".." in parts:
            raise DataError(f"{where} holds the unsafe path {member.filename!r}; {original}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{where} holds the link {member.filename!r}; {original}")
        if tuple(parts) in seen:
            raise DataError(f"{where} holds {'/'.join(parts)!r} twice; {original}")
        seen.add(tuple(parts))


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").split("/")  # some programs write zips with backslashes
