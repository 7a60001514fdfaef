"""Everything that people really have as FER2013, whole or broken, on data sets of 42 images made on the spot."""

import contextlib
import io
import os
import shutil
import socket
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_utils import paths
from fer_utils.data import EMOTIONS, SPLITS, copies, dataset, fer2013, ferplus, load_fer2013, readers, sample_faces
from fer_utils.data.sample_faces import SampleFaces
from fer_utils.errors import DataError

USAGES = ("Training", "PublicTest", "PrivateTest")
PER_CLASS = 2

# --- Builders ---------------------------------------------------------------------------------------------------------


def tiny_faces() -> list[tuple[int, int, np.ndarray]]:
    """(split id, label, image) of two random images per class and split, in the order of fer2013.csv."""
    generator = np.random.default_rng(0)
    return [
        (split_id, label, generator.integers(0, 256, (48, 48)).astype(np.uint8))
        for split_id in range(3)
        for label in range(7)
        for _ in range(PER_CLASS)
    ]


def tiny_rows() -> list[list[str]]:
    """The same images as rows of fer2013.csv: emotion, pixels, Usage."""
    return [[str(label), " ".join(map(str, image.ravel())), USAGES[s]] for s, label, image in tiny_faces()]


def write_csv(path: Path, rows: list[list[str]], header: str = "emotion,pixels,Usage") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def encode(image: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, image_format)
    return buffer.getvalue()


def tiny_files(official_names: bool = True) -> dict[str, bytes]:
    """The same images as files of Kaggle's archive: path -> content, which is PNG for all that the names say .jpg."""
    files = {}
    for i, (split_id, label, image) in enumerate(tiny_faces()):
        prefix = f"{USAGES[split_id]}_" if official_names else ""
        files[f"{'train' if split_id == 0 else 'test'}/{EMOTIONS[label]}/{prefix}{i:04}.jpg"] = encode(image)
    return files


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    """Give every test an empty data folder, and so an empty cache, of its own."""
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path / "data")
    monkeypatch.delenv("FER_DATA", raising=False)
    (tmp_path / "data").mkdir()


def refusal(path: Path) -> str:
    """The one plain sentence with which a source is refused; nothing may be left in the cache folder."""
    with pytest.raises(DataError) as caught:
        load_fer2013(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert not list(paths.DATA_DIR.rglob("*.*"))
    return message


def same_images(faces: dataset.FER2013, rows: list[int] | None = None) -> bool:
    expected = np.stack([image for *_, image in tiny_faces()])
    return np.array_equal(faces.images, expected if rows is None else expected[rows])


# --- The four forms ---------------------------------------------------------------------------------------------------


def test_forms_agree(tmp_path):
    table = load_fer2013(write_csv(tmp_path / "fer2013.csv", tiny_rows()))
    archive = load_fer2013(write_zip(tmp_path / "archive.zip", tiny_files()))
    folder = load_fer2013(write_folder(tmp_path / "unpacked", tiny_files()))
    wrapped = load_fer2013(write_zip(tmp_path / "w.zip", {f"archive/{n}": b for n, b in tiny_files().items()}))
    assert [f.form for f in (table, archive, folder, wrapped)] == ["csv", "zip", "folder", "zip"]
    assert len({f.fingerprint for f in (table, archive, folder, wrapped)}) == 1
    assert len(table.fingerprint) == 16
    assert same_images(table)
    assert table.images.dtype == np.uint8 and table.labels.dtype == np.int64 and table.split_ids.dtype == np.int8
    assert table.names[17] == "row 17" and archive.names[0] == "train/angry/Training_0000.jpg"
    assert [len(table.where(split)) for split in SPLITS] == [14, 14, 14]
    images, labels = table.subset("val")
    assert np.array_equal(images, table.images[14:28]) and labels.tolist() == [i // 2 for i in range(14)]


def test_rows_are_ordered_by_split_and_keep_their_names(tmp_path):
    rows = tiny_rows()[::-1]
    faces = load_fer2013(write_csv(tmp_path / "fer2013.csv", rows))
    assert faces.split_ids.tolist() == [0] * 14 + [1] * 14 + [2] * 14
    assert faces.names[0] == "row 28" and faces.names[-1] == "row 13"


def test_form_is_told_by_content_not_by_file_name(tmp_path):
    assert load_fer2013(write_zip(tmp_path / "fer2013.csv", tiny_files())).form == "zip"
    assert load_fer2013(write_csv(tmp_path / "archive.zip", tiny_rows())).form == "csv"


def test_zip_with_a_csv_inside(tmp_path):
    table = write_csv(tmp_path / "t.csv", tiny_rows()).read_bytes()
    faces = load_fer2013(write_zip(tmp_path / "a.zip", {"fer2013/README": b"", "fer2013/fer2013.csv": table}))
    assert faces.form == "csv" and same_images(faces)


def test_validation_is_cut_from_train_and_said_where_file_names_do_not_tell(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (7 * 22, 48, 48)).astype(np.uint8)
    files = {
        f"{'test' if i % 11 == 0 else 'train'}/{EMOTIONS[i // 22]}/{i:04}.png": encode(x) for i, x in enumerate(images)
    }
    faces = load_fer2013(write_folder(tmp_path / "plain", files))
    counts = [np.bincount(faces.subset(split)[1], minlength=7).tolist() for split in SPLITS]
    assert counts == [[18] * 7, [2] * 7, [2] * 7]
    assert "10 % of every class of train became val" in " ".join(faces.notes)
    assert all(name.startswith("train/") for name in faces.names[faces.where("val")])
    first_ones = [f"train/{emotion}/{22 * label + i:04}.png" for label, emotion in enumerate(EMOTIONS) for i in (1, 2)]
    assert faces.names[faces.where("val")].tolist() != first_ones  # but a random choice
    again = load_fer2013(write_zip(tmp_path / "plain.zip", files))
    assert again.fingerprint == faces.fingerprint


# --- Finding it -------------------------------------------------------------------------------------------------------


def test_missing_path_is_never_replaced_by_the_sample(monkeypatch):
    for source in ("no/such/archive.zip", Path("/no/such/folder")):
        with pytest.raises(DataError, match=r"does not exist.*kaggle\.com/datasets/msambare/fer2013"):
            fer2013.find_data(source)
    monkeypatch.setenv("FER_DATA", "no/such/archive.zip")
    with pytest.raises(DataError, match=r"FER_DATA 'no/such/archive\.zip' does not exist"):
        fer2013.load_data("auto")


def test_folder_without_fer2013_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is a folder without FER2013"):
        fer2013.find_data(tmp_path / "empty")


def test_no_data_gives_the_sample_loudly_only_when_nothing_was_asked_for(monkeypatch, capsys):
    split_ids, labels, images = (np.array(column) for column in zip(*tiny_faces(), strict=True))
    sample = SampleFaces(images[::-1], labels[::-1], split_ids[::-1].astype(np.int8), np.zeros((42, 4, 2), np.float32))
    monkeypatch.setattr(sample_faces, "make_sample", lambda: sample)
    faces = fer2013.load_data("auto")
    printed = capsys.readouterr().out
    assert faces.form == "sample" and not faces.standard and faces.names[0] == "sample 28"
    assert "EMBEDDED SAMPLE: 14 train / 14 val / 14 test" in printed
    assert "NO FER2013 WAS FOUND" in printed and "kaggle.com" in printed
    assert fer2013.load_data("sample").fingerprint == faces.fingerprint
    assert "NO FER2013" not in capsys.readouterr().out


def test_auto_finds_data_in_the_data_folder(monkeypatch, tmp_path):
    folder = paths.DATA_DIR
    (folder / "fer2013new.csv").write_text("Usage,Image name,neutral\n")
    write_zip(folder / "other.zip", {"train/1/a.jpg": b"", "test/1/b.jpg": b""})
    assert fer2013.find_data() is None
    write_folder(folder / "unpacked", tiny_files())
    assert fer2013.find_data() == folder / "unpacked"
    write_csv(folder / "renamed.csv", tiny_rows())
    assert fer2013.find_data() == folder / "renamed.csv"
    write_zip(folder / "archive.zip", tiny_files())
    assert fer2013.find_data() == folder / "archive.zip"
    (folder / "fer2013.csv").write_text("<html>log in</html>")  # broken, but plainly meant: refused, not passed over
    assert fer2013.find_data() == folder / "fer2013.csv"
    monkeypatch.setenv("FER_DATA", str(write_csv(tmp_path / "mine.csv", tiny_rows())))
    assert fer2013.find_data() == tmp_path / "mine.csv"
    assert fer2013.find_data("sample") is None


def test_relative_paths_start_at_the_project_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.project_path("data/x.zip") == paths.PROJECT_ROOT / "data" / "x.zip"
    assert paths.project_path(tmp_path / "x.zip") == tmp_path / "x.zip"


def test_failed_download_is_one_sentence_and_leaves_nothing(monkeypatch):
    def fail(handle, output_dir, **_):
        write_folder(Path(output_dir), dict(list(tiny_files().items())[:20]))
        raise ConnectionError("no route to host")

    monkeypatch.setattr("kagglehub.dataset_download", fail)
    with pytest.raises(DataError, match=r"could not be downloaded \(ConnectionError\).*archive\.zip"):
        fer2013.download_fer2013()
    assert not list(paths.DATA_DIR.iterdir())


def test_finished_download_is_found_afterwards(monkeypatch):
    monkeypatch.setattr(
        "kagglehub.dataset_download", lambda handle, output_dir, **_: write_folder(Path(output_dir), tiny_files())
    )
    assert fer2013.download_fer2013() == fer2013.find_data("auto") == paths.DATA_DIR / "fer2013"


# --- Broken CSV files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "columns"), [("emotion,pixels,Usage", (0, 1, 2)), ("emotion, Usage, pixels", (0, 2, 1))]
)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_csv_names_the_row(tmp_path, header, columns, kept):
    rows = [[row[column] for column in columns] for row in tiny_rows()]
    path = write_csv(tmp_path / "fer2013.csv", rows, header)
    last_row = len(",".join(rows[-1])) + 1
    path.write_bytes(path.read_bytes()[: -round(last_row * (1 - kept))])
    message = refusal(path)
    assert message.startswith("fer2013.csv: row 41, the last one, has ") and "cut off, download it again" in message


def test_wrong_pixel_counts_are_counted_and_the_first_five_rows_named(tmp_path):
    rows = tiny_rows()
    for i in (3, 8, 11, 20, 21, 30, 35):
        rows[i][1] = rows[i][1].rsplit(" ", 1)[0] if i % 2 else rows[i][1] + " 7"
    message = refusal(write_csv(tmp_path / "fer2013.csv", rows))
    assert "7 rows have a number of pixels other than 2,304 (for example 2,303): row 3, 8, 11, 20, 21, ..." in message


@pytest.mark.parametrize("pixel", ["256", "-1", "NaN", "12.5", "abc", "99999999999999999999", "4294967296", "1e2", "²"])
@pytest.mark.parametrize("position", [0, 2303])
def test_bad_pixels_are_refused_and_never_wrapped(tmp_path, pixel, position):
    rows = tiny_rows()
    pixels = rows[5][1].split()
    pixels[position] = pixel
    rows[5][1] = " ".join(pixels)
    message = refusal(write_csv(tmp_path / "fer2013.csv", rows))
    assert f"1 row has a pixel that is not a whole number from 0 to 255 (for example {pixel!r}): row 5," in message


@pytest.mark.parametrize("label", ["7", "-1", "", " ", "happy", "3.0", "0_3", "+3", "\u0663", "9" * 5000])
def test_bad_labels_are_refused(tmp_path, label):
    rows = tiny_rows()
    rows[9][0] = label
    message = refusal(write_csv(tmp_path / "fer2013.csv", rows))
    assert f"1 row has a label that is not a whole number from 0 to 6 (for example {label[:20]!r}): row 9," in message


def test_usage_in_other_case_or_with_blanks_is_accepted(tmp_path):
    rows = tiny_rows()
    rows[0][2], rows[20][2], rows[41][2] = "TRAINING", " publictest ", "PrivateTest  "
    assert same_images(load_fer2013(write_csv(tmp_path / "fer2013.csv", rows)))


def test_unknown_usage_is_named(tmp_path):
    rows = tiny_rows()
    rows[4][2] = "Validation"
    message = refusal(write_csv(tmp_path / "fer2013.csv", rows))
    assert "a Usage other than Training, PublicTest and PrivateTest (for example 'Validation'): row 4," in message


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(("newline", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-8-sig"), ("\r\n", "utf-16")])
@pytest.mark.parametrize("quote", ["", '"'])
def test_other_separators_line_ends_quotes_and_byte_order_marks(tmp_path, separator, newline, encoding, quote):
    lines = [["emotion", "pixels", "Usage"], *tiny_rows(), []]
    text = newline.join(separator.join(f"{quote}{field}{quote}" for field in line) for line in lines) + newline
    path = tmp_path / "fer2013.csv"
    path.write_bytes(text.encode(encoding))
    assert same_images(load_fer2013(path))


def test_icml_face_data_is_read(tmp_path):
    rows = [[emotion, usage, pixels] for emotion, pixels, usage in tiny_rows()]
    faces = load_fer2013(write_csv(tmp_path / "icml_face_data.csv", rows, header="emotion, Usage, pixels"))
    assert faces.form == "icml_csv" and same_images(faces)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "fer2013.csv is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 301072766\n", "git-LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><head><title>Log in</title>", "is a web page, probably a log-in page"),
        (b"\xef\xbb\xbf<html>", "is a web page"),
        (b"\x1f\x8b\x08\x00\x00\x00", "is a gzip archive; unpack it"),
        (b"emotion,pixels\n0,1 2 3\n", "should name the columns emotion, pixels and Usage but reads 'emotion,pixels'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not FER2013"),
        (b"emotion,pixels,Usage\n", "has a header but no rows"),
        (b'emotion,pixels,Usage\n0,"' + b"1 2 3\n" * 50_000, "line 2"),
        (b"PK\x03\x04 and then nothing", "damaged or unfinished zip"),
    ],
)
def test_what_is_often_saved_as_fer2013_csv_is_recognized(tmp_path, content, expected):
    (tmp_path / "fer2013.csv").write_bytes(content)
    assert expected in refusal(tmp_path / "fer2013.csv")


def test_endless_csv_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_TOTAL_BYTES", 100_000)
    assert "so it is not FER2013" in refusal(write_csv(tmp_path / "fer2013.csv", tiny_rows()))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line", ["x\n", "\n", "0,1 2 3,Training\n"])
def test_short_lines_without_end_are_stopped_early(tmp_path, line):
    bomb = f"emotion,pixels,Usage\n{line * 300_000}".encode()
    path = write_zip(tmp_path / "archive.zip", {"fer2013.csv": bomb})
    del bomb
    start = time.thread_time()
    assert "holds more than 100,000 lines, so it is not FER2013" in refusal(path)
    assert time.thread_time() - start < 5, "seconds"


# --- Incomplete or unusual data ---------------------------------------------------------------------------------------


def test_class_without_images_stops(tmp_path):
    rows = [row for row in tiny_rows() if (row[0], row[2]) != ("1", "PrivateTest")]
    assert "has no 'disgust' image in test" in refusal(write_csv(tmp_path / "fer2013.csv", rows))


def test_split_without_images_stops(tmp_path):
    files = {name: content for name, content in tiny_files().items() if name.startswith("train")}
    assert "has no 'angry' image in test" in refusal(write_zip(tmp_path / "archive.zip", files))


def test_other_counts_are_said_and_the_data_marked_non_standard(tmp_path, capsys):
    faces = fer2013.load_data(write_csv(tmp_path / "fer2013.csv", tiny_rows()))
    printed = capsys.readouterr().out
    assert not faces.standard
    assert "FER2013 from fer2013.csv: 14 train / 14 val / 14 test images" in printed
    assert "non-standard data" in printed and "train has 14 images (official 28,709)" in printed


def test_constant_images_are_counted(tmp_path):
    rows = tiny_rows()
    rows[2][1] = rows[30][1] = " ".join(["0"] * 2304)
    faces = load_fer2013(write_csv(tmp_path / "fer2013.csv", rows))
    assert any(note.startswith("2 images are constant") for note in faces.notes)


def test_exact_duplicates_across_splits(tmp_path):
    rows = tiny_rows()
    rows[1][1] = rows[15][1] = rows[29][1] = rows[0][1]  # one image in all splits, twice in train
    rows[40][1] = rows[41][1]  # a pair inside test is no copy of train
    faces = load_fer2013(write_csv(tmp_path / "fer2013.csv", rows))
    assert np.flatnonzero(copies.copies_in_train(faces)).tolist() == [15, 29]
    groups = copies.duplicate_groups(faces.images)
    assert groups.shape == (42,) and groups.max() + 1 == 42 - 4
    assert len(set(groups[[0, 1, 15, 29]])) == 1 and groups[40] == groups[41] != groups[0]


# --- Hostile or damaged archives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["/train/sad/x.jpg", "../train/sad/x.jpg", "train/../../x.jpg", "C:\\x.jpg", "a\\..\\x"]
)
def test_zip_with_a_path_that_leaves_its_folder_is_refused(tmp_path, name):
    assert "unsafe path" in refusal(write_zip(tmp_path / "archive.zip", tiny_files() | {name: b""}))


def test_zip_with_a_link_is_refused(tmp_path):
    path = write_zip(tmp_path / "archive.zip", tiny_files())
    link = zipfile.ZipInfo("train/sad/link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "holds the link 'train/sad/link.jpg'" in refusal(path)


@pytest.mark.parametrize("limit", ["MAX_IMAGE_BYTES", "MAX_TOTAL_BYTES"])
def test_zip_bomb_is_refused(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(readers, limit, 100_000)
    bomb = {"train/angry/0.jpg": encode(tiny_faces()[0][2]) + bytes(200_000)}
    message = refusal(write_zip(tmp_path / "archive.zip", tiny_files() | bomb))
    assert message.startswith("archive.zip/train/angry/0.jpg holds far more bytes than")


def test_zip_that_lies_about_a_size_is_refused(tmp_path):
    path = write_zip(tmp_path / "archive.zip", tiny_files())
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("train/angry/Training_0000.jpg").file_size
    directory = path.read_bytes().replace(size.to_bytes(4, "little"), (size // 2).to_bytes(4, "little"))
    path.write_bytes(directory)
    assert "cannot be read (Bad CRC-32" in refusal(path)


@pytest.mark.parametrize("again", ["train/angry/Training_0000.jpg", "train\\angry\\Training_0000.jpg"])
def test_zip_with_a_file_twice_is_refused(tmp_path, again):
    path = write_zip(tmp_path / "archive.zip", tiny_files())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning) if "/" in again else contextlib.nullcontext():
        archive.writestr(again, b"another")
    assert "archive.zip holds 'train/angry/Training_0000.jpg' twice" in refusal(path)


def test_image_of_huge_size_is_refused_before_it_is_decoded(tmp_path):
    huge = {"train/sad/huge.png": encode(np.zeros((1, 5000), np.uint8))}
    assert "train/sad/huge.png is not a readable image (5000 x 1" in refusal(
        write_folder(tmp_path / "f", tiny_files() | huge)
    )


def test_damaged_member_of_a_zip_is_named(tmp_path):
    path = write_zip(tmp_path / "archive.zip", tiny_files())
    content = bytearray(path.read_bytes())
    content[1000] ^= 255  # inside the first image
    path.write_bytes(content)
    assert "archive.zip/train/angry/Training_0000.jpg cannot be read" in refusal(path)


def test_unfinished_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "archive.zip", tiny_files())
    path.write_bytes(path.read_bytes()[:-100])
    assert "archive.zip is a damaged or unfinished zip" in refusal(path)


def test_zip_of_something_else_is_refused(tmp_path):
    assert "is not FER2013" in refusal(write_zip(tmp_path / "archive.zip", {"train/1/a.jpg": b"", "README": b""}))


# --- Odd folders ------------------------------------------------------------------------------------------------------


def test_odd_folder_is_read_and_conversions_are_counted(tmp_path):
    """Upper-case and other class names, an RGB and a larger image, hidden files, a foreign class."""
    renamed = {"angry": "ANGRY", "happy": "Happiness", "fear": "fearful"}
    files = {}
    for name, content in tiny_files().items():
        split, emotion, file = name.split("/")
        files[f"{split.title()}/{renamed.get(emotion, emotion)}/{file}"] = content
    image = tiny_faces()[8][2]
    files["Train/sad/Training_0008.jpg"] = encode(np.stack([image] * 3, axis=-1))
    files["Train/sad/Training_0009.jpg"] = encode(np.kron(tiny_faces()[9][2], np.ones((2, 2), np.uint8)))
    files |= {
        "Train/.DS_Store": b"x",
        "Train/sad/.DS_Store": b"x",
        "Test/sad/Thumbs.db": b"x",
        "Test/sad/._1.jpg": b"x",
    }
    files |= {"Train/contempt/0.jpg": b"x", "README.md": b"x"}
    faces = load_fer2013(write_folder(tmp_path / "odd", files))
    assert same_images(
        dataset.FER2013(**vars(faces) | {"images": faces.images[:9]}), list(range(9))
    )  # gray RGB is exact
    assert len(faces.labels) == 42 and np.abs(faces.images[9].astype(int) - tiny_faces()[9][2]).max() < 128
    assert "2 images were not 48x48 gray and were converted" in faces.notes
    assert any(note.startswith("1 files are in none of the seven class folders") for note in faces.notes)


@pytest.mark.parametrize("content", [b"", b"not an image", encode(tiny_faces()[0][2], "JPEG")[:900]])
def test_corrupt_image_is_named(tmp_path, content):
    files = tiny_files() | {"train/sad/Training_0008.jpg": content}
    message = refusal(write_folder(tmp_path / "mine", files))
    assert message.startswith("mine/train/sad/Training_0008.jpg is not a readable image")


def test_16_bit_image_is_refused_and_not_clipped(tmp_path):
    files = tiny_files() | {"train/sad/deep.png": encode(np.full((48, 48), 3000, np.uint16))}
    assert "train/sad/deep.png is not a readable image" in refusal(write_folder(tmp_path / "mine", files))


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    files = tiny_files() | {f"copy/{name}": content for name, content in tiny_files().items()}
    assert "more than one data set, in . and copy" in refusal(write_folder(tmp_path / "mine", files))


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "fer2013.csv", tiny_rows())

    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(readers, "read_source", deny)
    assert refusal(path) == f"{path} cannot be read (Permission denied); check that it exists and may be read"


# --- Not files, too large, not readable -------------------------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have 107 bytes at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


NOT_FILES = {make_pipe: "a pipe", link_to_pipe: "a pipe", make_socket: "a socket", link_to_device: "a device"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make, kind", NOT_FILES.items())
def test_what_is_no_file_is_refused_by_its_kind_and_never_opened(tmp_path, make, kind):
    make(tmp_path / "fer2013.csv")
    assert refusal(tmp_path / "fer2013.csv") == f"{tmp_path}/fer2013.csv is {kind}, not a file; remove or replace it"
    folder = write_folder(tmp_path / "unpacked", tiny_files())
    make(folder / "train" / "angry" / "a.jpg")
    assert refusal(folder) == f"{folder}/train/angry/a.jpg is {kind}, not a file; remove or replace it"
    make(paths.DATA_DIR / "renamed.csv")
    with pytest.raises(DataError, match=rf"renamed\.csv is {kind}"):
        fer2013.find_data()


@pytest.mark.parametrize("limit", ["MAX_IMAGE_BYTES", "MAX_TOTAL_BYTES"])
def test_files_of_a_folder_have_the_limits_of_a_zip(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(readers, limit, 100_000)
    folder = write_folder(tmp_path / "unpacked", tiny_files())
    with (folder / "train" / "angry" / "Training_0000.jpg").open("ab") as file:
        file.truncate(40_000_000_000)  # a sparse file
    message = refusal(folder)
    assert message.startswith("unpacked/train/angry/Training_0000.jpg holds far more bytes than")


@pytest.fixture
def ordinary_user(monkeypatch):
    """A data folder of an ordinary user: root may read everything."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    monkeypatch.setattr(paths, "DATA_DIR", folder)
    yield folder
    if is_root:
        os.seteuid(0)
    for path in folder.rglob("*"):
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("closed", ["mine", "mine/train", "mine/train/angry", "renamed.csv", "fer2013.csv"])
def test_what_may_not_be_read_is_named(ordinary_user, closed):
    if closed.startswith("mine"):
        write_folder(ordinary_user / "mine", tiny_files())
    else:
        write_csv(ordinary_user / closed, tiny_rows())
    (ordinary_user / closed).chmod(0)
    with pytest.raises(DataError, match=rf"{closed} cannot be read \(Permission denied\); check") as caught:
        fer2013.load_data()
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=rf"{closed.split('/')[0]}.* cannot be read \(Permission denied\); check"):
        fer2013.load_data(ordinary_user / closed.split("/")[0])


def test_data_folder_that_may_not_be_read_is_named(ordinary_user):
    (ordinary_user / "data").mkdir(mode=0)
    with pytest.raises(DataError, match=r"data cannot be read \(Permission denied\)"):
        fer2013.find_data(ordinary_user / "data")
    with pytest.raises(DataError, match=r"archive\.zip cannot be read \(Permission denied\)"):
        fer2013.find_data(ordinary_user / "data" / "archive.zip")


NO_TEXT = os.fsdecode(b"\xff\xfe")


def test_names_that_are_no_text_are_refused(tmp_path):
    for path in (tmp_path / f"{NO_TEXT}.csv", tmp_path / NO_TEXT / "fer2013.csv"):
        path.parent.mkdir(exist_ok=True)
        write_csv(path, tiny_rows())
        with pytest.raises(DataError, match="has a name that is not text; rename it"):
            fer2013.find_data(path)
        assert "has a name that is not text; rename it" in refusal(path)
    (paths.DATA_DIR / NO_TEXT).mkdir()
    write_csv(paths.DATA_DIR / NO_TEXT / "fer2013.csv", tiny_rows())
    with pytest.raises(DataError, match="has a name that is not text; rename it") as caught:
        fer2013.find_data()
    str(caught.value).encode()  # what is printed must be text


def test_names_of_images_that_are_no_text_are_refused_and_those_of_others_are_shown_as_text(tmp_path):
    folder = write_folder(tmp_path / "mine", tiny_files() | {f"train/x\n{NO_TEXT}/y": b""})
    notes = load_fer2013(folder).notes
    assert any("such as train/x\N{REPLACEMENT CHARACTER}" in note for note in notes)
    write_folder(folder, {f"train/sad/{NO_TEXT}.jpg": encode(tiny_faces()[0][2])})
    with pytest.raises(DataError, match="has a name that is not text; rename it"):
        load_fer2013(folder)


@pytest.mark.parametrize("source", ["", "  "])
def test_empty_path_is_refused(source):
    with pytest.raises(DataError, match="the data path is empty"):
        fer2013.find_data(source)


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "~nobody-of-that-name/x"])
def test_impossible_paths_are_one_sentence(source):
    with pytest.raises(DataError):
        fer2013.load_data(source)


# --- Cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_counts(monkeypatch) -> list[Path]:
    """The sources that were really read, as opposed to taken from the cache."""
    seen, read_source = [], readers.read_source
    monkeypatch.setattr(readers, "read_source", lambda path: seen.append(path) or read_source(path))
    return seen


@pytest.mark.parametrize("form", ["csv", "zip", "folder", "folder that holds the cache"])
def test_second_load_comes_from_the_cache_and_is_the_same(tmp_path, read_counts, form):
    if form == "csv":
        path = write_csv(tmp_path / "fer2013.csv", tiny_rows())
    elif form == "zip":
        path = write_zip(tmp_path / "archive.zip", tiny_files(official_names=False))
    else:
        path = write_folder(tmp_path / "unpacked" if form == "folder" else paths.DATA_DIR, tiny_files())
    first, second = load_fer2013(path), load_fer2013(path)
    assert len(read_counts) == 1
    for field, value in vars(first).items():
        assert np.array_equal(getattr(second, field), value) and type(getattr(second, field)) is type(value), field


def test_changed_source_is_read_again(tmp_path, read_counts):
    path = write_csv(tmp_path / "fer2013.csv", tiny_rows())
    before = load_fer2013(path)
    rows = tiny_rows()
    rows[0][1], rows[1][1] = rows[1][1], rows[0][1]  # same size
    write_csv(path, rows)
    after = load_fer2013(path)
    assert len(read_counts) == 2 and after.fingerprint != before.fingerprint
    folder = write_folder(tmp_path / "unpacked", tiny_files())
    load_fer2013(folder)
    (folder / "train" / "sad" / "Training_9999.jpg").write_bytes(encode(tiny_faces()[8][2]))
    assert len(load_fer2013(folder).labels) == 43


def test_fingerprint_depends_on_images_labels_and_splits(tmp_path):
    prints = {load_fer2013(write_csv(tmp_path / "a.csv", tiny_rows())).fingerprint}
    for column, value in [(0, "1"), (1, " ".join(["9"] * 2304)), (2, "PublicTest")]:
        rows = tiny_rows()
        rows[13][column] = value  # the last row of train: in PublicTest it would stay where it is
        prints.add(load_fer2013(write_csv(tmp_path / f"{column}.csv", rows)).fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "empty", "text", "foreign"])
def test_damaged_cache_is_stale_not_a_crash(tmp_path, read_counts, damage):
    path = write_csv(tmp_path / "fer2013.csv", tiny_rows())
    load_fer2013(path)
    (cache,) = (paths.DATA_DIR / "cache").iterdir()
    content = bytearray(cache.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "header":
        content = content.replace(b"(42, 48, 48)", b"(42, 48, 47)")
    elif damage == "foreign":
        np.savez(cache, something=np.arange(3))
        content = cache.read_bytes()
    cache.write_bytes({"cut": content[:50_000], "empty": b"", "text": b"hello"}.get(damage, content))
    assert same_images(load_fer2013(path)) and len(read_counts) == 2
    assert same_images(load_fer2013(path)) and len(read_counts) == 2  # and it was repaired


def test_cache_folder_that_cannot_be_written_only_costs_speed(tmp_path, read_counts):
    (paths.DATA_DIR / "cache").write_text("a file where the folder should be")
    path = write_csv(tmp_path / "fer2013.csv", tiny_rows())
    assert same_images(load_fer2013(path)) and same_images(load_fer2013(path))
    assert len(read_counts) == 2


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "new" / "table.csv"
    paths.atomic_write(path, b"old")
    assert path.read_bytes() == b"old"

    def disk_full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        paths.atomic_write(path, b"new, and much longer")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["table.csv"]


# --- FER+ -------------------------------------------------------------------------------------------------------------


def write_ferplus(folder: Path) -> tuple[Path, Path]:
    """Votes in which every row is recognized by its first number; the row map names the files of `tiny_files`."""
    votes, row_map = folder / "fer2013new.csv", folder / "row_of_file.csv"
    lines = [f"{USAGES[s]},fer{i:07}.png,{i},0,0,0,0,0,0,0,0,1" for i, (s, *_) in enumerate(tiny_faces())]
    votes.write_text("\n".join(["Usage,Image name," + ",".join(ferplus.FERPLUS_COLUMNS), *lines]) + "\n")
    lines = [f"{i},x,0,{name},1" for i, name in enumerate(tiny_files())]
    row_map.write_text("\n".join(["row,usage,emotion,path,exact", *reversed(lines)]) + "\n")
    return votes, row_map


@pytest.fixture
def tiny_is_official(monkeypatch):
    monkeypatch.setattr(fer2013, "OFFICIAL_COUNTS", {split: (PER_CLASS,) * 7 for split in SPLITS})


def test_ferplus_follows_the_rows_of_any_form(tmp_path, tiny_is_official):
    votes_csv, row_map = write_ferplus(tmp_path)
    table = load_fer2013(write_csv(tmp_path / "fer2013.csv", tiny_rows()))
    votes = ferplus.load_ferplus(votes_csv, table)
    assert votes.shape == (42, 10) and votes.dtype == np.int64
    assert votes[:, 0].tolist() == list(range(42)) and (votes[:, 9] == 1).all()
    shuffled = {f"archive/{n.replace('angry', 'Anger')}": b for n, b in reversed(tiny_files().items())}
    del shuffled["archive/train/Anger/Training_0000.jpg"]
    wrapped = load_fer2013(write_zip(tmp_path / "archive.zip", shuffled))
    assert ferplus.load_ferplus(votes_csv, wrapped, row_map)[:, 0].tolist() == list(range(1, 42))


def test_ferplus_that_cannot_be_aligned_is_refused(tmp_path, monkeypatch):
    votes_csv, row_map = write_ferplus(tmp_path)
    table = load_fer2013(write_csv(tmp_path / "fer2013.csv", tiny_rows()))
    with pytest.raises(DataError, match="belong to the official FER2013"):
        ferplus.load_ferplus(votes_csv, table)  # 42 rows: row 17 need not be the official row 17
    archive = load_fer2013(write_zip(tmp_path / "archive.zip", tiny_files()))
    with pytest.raises(DataError, match=r"put row_of_file\.csv beside the data"):
        ferplus.load_ferplus(votes_csv, archive)
    with pytest.raises(DataError, match="is not a table with the columns path, row"):
        ferplus.load_ferplus(votes_csv, archive, votes_csv)
    plain = load_fer2013(write_zip(tmp_path / "plain.zip", tiny_files(official_names=False)))
    with pytest.raises(DataError, match=r"row_of_file\.csv lacks 42 images, such as train/"):
        ferplus.load_ferplus(votes_csv, plain, row_map)
    good = votes_csv.read_text()
    for number in ("1_7", "\u0667", "9" * 30):
        votes_csv.write_text(good.replace(",17,0,", f",{number},0,"))
        with pytest.raises(DataError, match=r"fer2013new\.csv holds '.*', which is not a whole number"):
            ferplus.load_ferplus(votes_csv, archive, row_map)
    votes_csv.write_text(good.replace(",17,0,", ",many,0,"))
    with pytest.raises(DataError, match=r"fer2013new\.csv holds 'many', which is not a whole number"):
        ferplus.load_ferplus(votes_csv, archive, row_map)
    votes_csv.write_text(good.replace("PublicTest,", "Training,"))
    with pytest.raises(DataError, match="other rows or splits than the data"):
        ferplus.load_ferplus(votes_csv, archive, row_map)


def test_find_ferplus_looks_beside_the_data_and_in_the_data_folder(tmp_path):
    assert ferplus.find_ferplus(tmp_path / "archive.zip") is None
    votes_csv, row_map = write_ferplus(paths.DATA_DIR)
    assert ferplus.find_ferplus(tmp_path / "archive.zip") == (votes_csv, row_map)
    votes_csv.rename(tmp_path / votes_csv.name)
    assert ferplus.find_ferplus(tmp_path / "archive.zip") == (tmp_path / votes_csv.name, row_map)
    row_map.unlink()
    assert ferplus.find_ferplus(tmp_path) == (tmp_path / votes_csv.name, None)


# --- The real data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_faces(real_archive, tmp_path_factory):
    """The real archive, its cache folder, and the seconds of the first and the second load."""
    cache_dir, seconds = tmp_path_factory.mktemp("cache"), []
    for _ in range(2):
        start = time.perf_counter()
        faces = load_fer2013(real_archive, cache_dir)
        seconds.append(time.perf_counter() - start)
    return faces, seconds


def test_real_archive_has_the_official_counts(real_faces):
    faces, _ = real_faces
    assert faces.standard and faces.form == "zip" and faces.images.shape == (35887, 48, 48)
    assert [len(faces.where(split)) for split in SPLITS] == [28709, 3589, 3589]
    assert np.bincount(faces.labels).tolist() == [4953, 547, 5121, 8989, 6077, 4002, 6198]
    assert np.bincount(faces.subset("test")[1]).tolist() == [491, 55, 528, 879, 594, 416, 626]
    assert all("PrivateTest_" in name for name in faces.names[faces.where("test")])
    assert any(note.startswith("12 images are constant") for note in faces.notes)


def test_real_archive_loads_fast_the_second_time(real_faces):
    _, (first, second) = real_faces
    assert first < 60 and second < max(1, first / 3)


def test_real_archive_has_known_duplicates(real_faces):
    faces, _ = real_faces
    groups = copies.duplicate_groups(faces.images)
    sizes = np.bincount(groups)
    has_copy = copies.copies_in_train(faces)
    # The JPEG form; in fer2013.csv itself the first two are 1,851 and 1,514.
    assert (len(groups) - len(sizes), (sizes > 1).sum()) == (1853, 1516)
    assert [has_copy[faces.where(split)].sum() for split in SPLITS] == [0, 280, 288]


def test_real_ferplus_agrees_with_the_labels(real_archive, real_faces):
    found = ferplus.find_ferplus(real_archive)
    if found is None or found[1] is None:
        pytest.skip("fer2013new.csv and row_of_file.csv are not beside the archive")
    faces, _ = real_faces
    votes = ferplus.load_ferplus(found[0], faces, found[1])
    happy = faces.labels == EMOTIONS.index("happy")
    clear = votes[:, :8].max(1) >= 6
    assert (votes[happy & clear].argmax(1) == ferplus.FERPLUS_COLUMNS.index("happiness")).mean() > 0.9


def test_the_majority_needs_more_votes_than_every_other_option():
    """Columns: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, no face."""
    votes = np.array(
        [
            [1, 6, 0, 0, 0, 0, 0, 2, 1, 0],  # happy
            [0, 0, 1, 0, 5, 4, 0, 0, 0, 0],  # angry
            [5, 5, 0, 0, 0, 0, 0, 0, 0, 0],  # a tie
            [2, 0, 0, 0, 0, 0, 0, 8, 0, 0],  # contempt is none of the seven
            [4, 0, 0, 0, 0, 0, 0, 0, 4, 2],  # a tie with "unknown"
            [0, 0, 0, 0, 0, 0, 6, 0, 4, 0],  # fear
        ]
    )
    labels = [-1 if label < 0 else EMOTIONS[label] for label in ferplus.majority_label(votes)]
    assert labels == ["happy", "angry", -1, -1, -1, "fear"]
