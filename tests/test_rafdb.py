"""The RAF-DB loader, on small trees in both forms people have, and on what can be wrong with them."""

import io

import numpy as np
import pytest
from PIL import Image

from fer_utils.data import EMOTIONS, FER2013, FaceDataset, copies_in_train
from fer_utils.data.rafdb import load_rafdb
from fer_utils.errors import DataError
from fer_utils.report import data_note

NUMBERS = {1: "surprise", 2: "fear", 3: "disgust", 4: "happy", 5: "sad", 6: "angry", 7: "neutral"}
PER_CLASS = {"train": 20, "test": 3}


def face(seed: int, size=(100, 100), mode="RGB", kind="JPEG") -> bytes:
    """A flat color with a little noise, so that a JPEG keeps it."""
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(30, 220, 3) + rng.integers(-4, 5, (*size[::-1], 3))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, quality=95)
    return buffer.getvalue()


def names():
    """(name without _aligned, split, number) of every image."""
    count = {"train": 0, "test": 0}
    for split, per_class in PER_CLASS.items():
        for i in range(7 * per_class):
            count[split] += 1
            yield f"{split}_{count[split]:05d}", split, 1 + i % 7


@pytest.fixture(scope="module")
def pictures():
    return {stem: face(i) for i, (stem, *_) in enumerate(names())}


@pytest.fixture
def original(tmp_path, pictures):
    """The original form; returns its root."""
    root = tmp_path / "basic"
    (root / "Image" / "aligned").mkdir(parents=True)
    (root / "EmoLabel").mkdir()
    for stem, data in pictures.items():
        (root / "Image" / "aligned" / f"{stem}_aligned.jpg").write_bytes(data)
    write_list(root, [f"{stem}.jpg {number}" for stem, _, number in names()])
    return root


@pytest.fixture
def folders(tmp_path, pictures):
    """The form with class folders; returns its root."""
    root = tmp_path / "raf"
    for split in PER_CLASS:
        lines = ["image,label"]
        for stem, own_split, number in names():
            if own_split == split:
                target = root / "DATASET" / split / str(number) / f"{stem}_aligned.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(pictures[stem])
                lines.append(f"{target.name},{number}")
        (root / f"{split}_labels.csv").write_text("\n".join(lines))
    return root


def write_list(root, lines):
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")


def read_list(root):
    return (root / "EmoLabel" / "list_patition_label.txt").read_text().splitlines()


# ---- Both forms ----


def test_both_forms_give_the_same_data(original, folders):
    one, other = load_rafdb(original), load_rafdb(folders)
    assert one.fingerprint == other.fingerprint
    assert all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ("images", "labels", "split_ids", "names"))


@pytest.mark.parametrize("form", ["original", "folders"])
def test_images_labels_and_splits(form, request):
    root = request.getfixturevalue(form)
    faces = load_rafdb(root)
    assert faces.images.shape == (161, 3, 100, 100) and faces.images.dtype == np.uint8
    assert [len(faces.where(split)) for split in ("train", "val", "test")] == [126, 14, 21]
    number_of = {f"{stem}_aligned.jpg": number for stem, _, number in names()}
    assert [EMOTIONS[label] for label in faces.labels] == [NUMBERS[number_of[name]] for name in faces.names]
    assert all(
        name.startswith("test") == (split == 2) for name, split in zip(faces.names, faces.split_ids, strict=True)
    )
    for split, per_class in (("train", 18), ("val", 2), ("test", 3)):
        assert (np.bincount(faces.subset(split)[1]) == per_class).all()
    assert faces.form == "rafdb" and not faces.standard and "non-standard data" in " ".join(faces.notes)
    assert data_note(faces) == "RAF-DB: 161 images, not the official 15,339."


def test_rafdb_is_a_data_set_of_faces_but_not_fer2013(original):
    faces = load_rafdb(original)
    assert isinstance(faces, FaceDataset) and not isinstance(faces, FER2013)


def test_colors_are_red_green_blue_and_not_mixed_up(original):
    path = original / "Image" / "aligned" / "test_00001_aligned.jpg"
    Image.new("RGB", (100, 100), (250, 120, 10)).save(path, quality=100)
    faces = load_rafdb(original)
    image = faces.images[list(faces.names).index(path.name)]
    assert np.abs(image.mean((1, 2)) - [250, 120, 10]).max() < 3


def test_official_counts_are_recognized(original, monkeypatch):
    monkeypatch.setattr("fer_utils.data.rafdb.OFFICIAL_COUNTS", {"train": 140, "test": 21})
    faces = load_rafdb(original)
    assert faces.standard and data_note(faces) == "RAF-DB: 161 images."


def test_found_in_a_folder_above_and_without_the_tables(original, folders):
    assert load_rafdb(original.parent).fingerprint == load_rafdb(original).fingerprint
    for split in PER_CLASS:
        (folders / f"{split}_labels.csv").unlink()
    assert load_rafdb(folders / "DATASET").fingerprint == load_rafdb(folders).fingerprint


def test_the_validation_split_is_the_same_every_time(original):
    first, again = load_rafdb(original), load_rafdb(original)
    assert np.array_equal(first.names, again.names) and first.fingerprint == again.fingerprint


def test_another_label_is_another_fingerprint(original):
    before = load_rafdb(original).fingerprint
    lines = read_list(original)
    write_list(original, ["train_00001.jpg 2", *lines[1:]])
    assert load_rafdb(original).fingerprint != before


def test_copies_across_splits_are_found(original, pictures):
    faces = load_rafdb(original)
    assert not copies_in_train(faces).any()
    learned = faces.names[faces.where("train")][0].removesuffix("_aligned.jpg")
    (original / "Image" / "aligned" / "test_00004_aligned.jpg").write_bytes(pictures[learned])
    faces = load_rafdb(original)
    assert list(faces.names[copies_in_train(faces)]) == ["test_00004_aligned.jpg"]


# ---- What can be converted, is ----


def test_other_sizes_and_modes_are_converted_and_counted(original):
    folder = original / "Image" / "aligned"
    (folder / "train_00001_aligned.jpg").write_bytes(face(1, size=(48, 60)))
    (folder / "train_00002_aligned.jpg").write_bytes(face(2, mode="L"))
    (folder / "train_00003_aligned.jpg").write_bytes(face(3, mode="RGBA", kind="PNG"))
    faces = load_rafdb(original)
    assert faces.images.shape[1:] == (3, 100, 100)
    assert "3 images were not 100x100 and in color, and were converted" in faces.notes


def test_constant_images_are_counted(original):
    Image.new("RGB", (100, 100)).save(original / "Image" / "aligned" / "test_00002_aligned.jpg")
    assert any("1 images are constant" in note for note in load_rafdb(original).notes)


def test_hidden_files_and_odd_line_ends_do_no_harm(original, folders):
    for place in (folders / "DATASET" / "train" / "1", folders / "DATASET" / "test" / "7"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"x")
    text = "\r\n".join(line.replace(" ", "\t") for line in read_list(original))
    (original / "EmoLabel" / "list_patition_label.txt").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert load_rafdb(folders).fingerprint == load_rafdb(original).fingerprint


# ---- What cannot be used, is named ----


def refuse(path, *words):
    with pytest.raises(DataError) as error:
        load_rafdb(path)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_no_rafdb_there(tmp_path):
    refuse(tmp_path / "nowhere", "nowhere", "does not exist", "ask its authors")
    refuse(tmp_path, "there is neither EmoLabel/list_patition_label.txt nor DATASET/train/1")
    (tmp_path / "raf.zip").write_bytes(b"PK\x03\x04")
    refuse(tmp_path / "raf.zip", "raf.zip is a file; unpack")


@pytest.mark.parametrize(
    "line, words",
    [
        ("train_00001.jpg 8", ("line 3", "a label from 1 to 7, not '8'")),
        ("train_00001.jpg 0", ("line 3", "not '0'")),
        ("train_00001.jpg 5.0", ("line 3", "not '5.0'")),
        ("train_00001.jpg happy", ("line 3", "not 'happy'")),
        ("train_00001.jpg", ("line 3", "not ''")),
        ("train_000", ("line 3", "not ''")),
        ("valid_00001.jpg 5", ("line 3", "train_00001.jpg or test_0001.jpg")),
        ("train_/../../secret.jpg 5", ("line 3", "train_00001.jpg or test_0001.jpg")),
        ("train_\\..\\secret.jpg 5", ("line 3", "train_00001.jpg or test_0001.jpg")),
        ("train_00002.jpg 2", ("line 3", "second time")),
        ("train_99999.jpg 2", ("1 images that are not there", "train_99999_aligned.jpg")),
    ],
)
def test_a_bad_line_of_the_list_is_named(original, line, words):
    lines = read_list(original)
    write_list(original, [*lines[:2], line, *lines[2:]] if "0001.jpg" not in line else [*lines[1:3], line, *lines[3:]])
    refuse(original, *words)


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\n", "<!DOCTYPE html>\n"])
def test_a_pointer_or_a_web_page_instead_of_the_list(original, text):
    (original / "EmoLabel" / "list_patition_label.txt").write_text(text)
    refuse(original, "git-LFS pointer or a web page")


def test_a_class_or_a_split_without_images(original, folders):
    write_list(original, [line for line in read_list(original) if not (line.startswith("test") and line[-1] == "2")])
    refuse(original, "no 'fear' image in test")
    for file in (folders / "DATASET" / "train" / "6").iterdir():
        file.unlink()
    (folders / "train_labels.csv").unlink()
    refuse(folders, "no 'angry' image in train")
    (original / "EmoLabel" / "list_patition_label.txt").write_text("")
    refuse(original, "in train")


@pytest.mark.parametrize("data", [b"", b"no image", b"cut"])
def test_an_image_that_cannot_be_read_is_named(original, pictures, data):
    data = pictures["train_00005"][:500] if data == b"cut" else data
    (original / "Image" / "aligned" / "train_00005_aligned.jpg").write_bytes(data)
    refuse(original, "train_00005_aligned.jpg is not a readable image")


def test_an_image_that_is_far_too_large_is_refused(original):
    Image.new("RGB", (5000, 10)).save(original / "Image" / "aligned" / "train_00005_aligned.jpg")
    refuse(original, "train_00005_aligned.jpg", "5000 x 10 pixels")


def test_tables_and_folders_that_disagree(folders):
    table = folders / "test_labels.csv"
    good = table.read_text()
    table.write_text(good.replace("test_00001_aligned.jpg,1", "test_00001_aligned.jpg,2"))
    refuse(folders, "test_labels.csv and the folders differ for 1 images, such as test_00001_aligned.jpg")
    table.write_text("\n".join(good.splitlines()[:-1]))
    refuse(folders, "differ for 1 images, such as test_00021_aligned.jpg")
    table.write_text(good.replace("test_00001_aligned.jpg,1", "test_00001_aligned.jpg,9"))
    refuse(folders, "test_labels.csv, row 1", "not '9'")
    table.write_text("name;class\nx;1\n")
    refuse(folders, "test_labels.csv should have the columns image and label")
