"""Whatever a file contains, reading it gives a result or one sentence, within memory and time.

Valid files are damaged at random with fixed seeds: bytes changed, cut out, doubled or inserted. Each reader gets a few
hundred of them. Only DataError and TrainingError may come out.
"""

import contextlib
import io
import json
import random
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_faces
from PIL import Image

from fer_utils import paths
from fer_utils.data import EMOTIONS, ferplus, readers
from fer_utils.errors import DataError, TrainingError
from fer_utils.evaluate import read_predictions
from fer_utils.models import build_model
from fer_utils.models.weights import load_classifier, save_compact, save_weights
from fer_utils.predict import Predictions, load_predictions
from fer_utils.training.checkpoints import read_checkpoint
from fer_utils.vision import photos

resource = pytest.importorskip("resource", reason="Windows has no limits on memory")
STATM = Path("/proc/self/statm")  # the memory of this process, in pages
pytestmark = pytest.mark.skipif(not STATM.exists(), reason="only Linux limits the address space")

SECONDS = 2.0  # processor time for one file
MEMORY = 1_000_000_000  # bytes for one file, beyond what the process has already
WORDS = [b"NaN", b"-1", b"\xff\xfe", b"0_3", b"1e999", b"\x00" * 64, b"[" * 3000, b"9" * 5000, b"\n", b",", b"{", b'"']


def damage(content: bytes, rng: random.Random) -> bytes:
    """Change one to four places of a file."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 8, 100])
        end = rng.choice([place + length, place + length, len(data)])
        match rng.randrange(4):
            case 0:  # other bytes; often the largest numbers
                data[place : place + length] = rng.choice([b"\xff", b"\x00", b"\x7f", rng.randbytes(1)]) * length
            case 1:
                del data[place:end]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                data[place:place] = rng.choice(WORDS)
    return bytes(data)


@contextlib.contextmanager
def limited():
    """Limit the address space, and check the processor time afterwards."""
    used = int(STATM.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    started = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - started < SECONDS


def fuzz(content: bytes, read, times: int, seed: int = 0) -> None:
    """Read damaged versions of a file; some must be refused, and each refusal is one line that can be printed."""
    refused = 0
    for number in range(times):
        damaged = damage(content, random.Random(f"{seed} {number}"))
        try:
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(damaged)
        except (DataError, TrainingError) as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 700
            str(error).encode()
    assert refused > times / 10, "hardly any file was damaged, so this shows nothing"


def as_file(kind: str, mode: str = "RGB", side: int = 20) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


# --- Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, mode", [(kind, "RGB") for kind in photos.FORMATS] + [("TIFF", "L"), ("PNG", "LA")])
def test_uploads(kind, mode):
    fuzz(as_file(kind, mode), lambda content: photos.read_image(content, "photo"), 200)


@pytest.mark.parametrize("kind", readers.IMAGE_FORMATS)
def test_images_of_a_data_set(kind):
    fuzz(as_file(kind), lambda content: readers.decode_image(content, "face"), 100)


# --- Data -------------------------------------------------------------------------------------------------------------


def csv_content() -> bytes:
    pixels = " ".join(["7"] * readers.PIXELS)
    usages = ("Training", "PublicTest", "PrivateTest")
    rows = [f"{label},{pixels},{usage}" for usage in usages for label in range(7)]
    return "\n".join(["emotion,pixels,Usage", *rows]).encode()


def zip_content(compression: int, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


IMAGES = {f"{split}/{emotion}/1.png": as_file("PNG", "L", 48) for split in ("train", "test") for emotion in EMOTIONS}
SOURCES = {
    "csv": csv_content(),
    "stored": zip_content(zipfile.ZIP_STORED, IMAGES),
    "deflated": zip_content(zipfile.ZIP_DEFLATED, IMAGES),
    "bzip2": zip_content(zipfile.ZIP_BZIP2, {"fer2013.csv": csv_content()}),
    "lzma": zip_content(zipfile.ZIP_LZMA, {"fer2013.csv": csv_content()}),
}


@pytest.mark.parametrize("content", SOURCES.values(), ids=SOURCES)
def test_data(tmp_path, content):
    path = tmp_path / "source"

    def read(damaged):
        path.write_bytes(damaged)
        readers.is_fer2013(path)
        readers.read_source(path)

    fuzz(content, read, 60)


def test_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA_DIR", tmp_path)
    path, faces = tmp_path / "table.csv", tiny_faces(1)
    rows = [f"Training,{','.join('0' * 10)}" for _ in faces.labels]
    votes = "\n".join([",".join(("Usage", *ferplus.FERPLUS_COLUMNS)), *rows]).encode()
    names = faces.names[faces.where("test")]
    rows = [f"{name},0.1,0.2,0.1,0.1,0.2,0.1,0.2" for name in names]
    predicted = "\n".join([",".join(("name", *EMOTIONS)), *rows]).encode()

    def read_votes(damaged):
        path.write_bytes(damaged)
        ferplus.load_ferplus(path, faces)

    def read_predicted(damaged):
        path.write_bytes(damaged)
        read_predictions(path, faces, "test")

    fuzz(votes, read_votes, 60)
    fuzz(predicted, read_predicted, 60)


# --- Weights and logits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_network():
    return build_model("small_resnet", width=1)


@pytest.mark.parametrize("save, name", [(save_weights, "net.pt"), (save_compact, "net.safetensors")])
def test_weights(tmp_path, small_network, save, name):
    path = tmp_path / name
    save(small_network, path)

    def read(damaged):
        path.write_bytes(damaged)
        load_classifier(path)

    content = path.read_bytes()
    fuzz(content, read, 60)
    head = 3000  # the pickle or the JSON, where most lies are possible
    fuzz(content[:head], lambda start: read(start + content[head:]), 60)


def test_headers_of_compact_weights(tmp_path, small_network):
    """Damage only the JSON: the length in front of it is right, so that the lie is read."""
    path = tmp_path / "net.safetensors"
    save_compact(small_network, path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")

    def read(header):
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
        load_classifier(path)

    fuzz(content[8:end], read, 60)


def test_pickles_of_weights(tmp_path, small_network, capsys):
    """Damage only the pickle in the zip of a .pt file, with a right checksum."""
    path, resumed = tmp_path / "net.pt", tmp_path / "run.pt"
    save_weights(small_network, path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    pickle_name = next(name for name in members if name.endswith("data.pkl"))

    def read(damaged):
        content = zip_content(zipfile.ZIP_STORED, members | {pickle_name: damaged})
        resumed.write_bytes(content)
        read_checkpoint(resumed)
        path.write_bytes(content)
        load_classifier(path)

    fuzz(members[pickle_name], read, 50)


def test_logits(tmp_path):
    faces = tiny_faces(1)
    path = tmp_path / "04_model.npz"
    Predictions(np.zeros((2, 7, 7)), np.zeros((2, 7, 7)), (0, 1), faces.fingerprint).save(path)
    with np.load(path) as arrays:
        members = {f"{name}.npy": saved(array) for name, array in arrays.items()}

    def read(damaged):
        path.write_bytes(damaged)
        load_predictions(path, faces)

    fuzz(path.read_bytes(), read, 60)
    for name, content in members.items():  # with right checksums
        fuzz(content, lambda lie, name=name: read(zip_content(zipfile.ZIP_STORED, members | {name: lie})), 12)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(10**12,), (2, 10**9, 7), (2**62, 4), (-1, 7)], ids=str)
def test_logits_that_claim_terabytes(tmp_path, shape):
    faces, path = tiny_faces(1), tmp_path / "04_model.npz"
    Predictions(np.zeros((1, 7, 7)), np.zeros((1, 7, 7)), (0,), faces.fingerprint).save(path)
    with np.load(path) as arrays:
        members = {f"{name}.npy": saved(array) for name, array in arrays.items()}
    lie = io.BytesIO()
    np.lib.format.write_array_header_1_0(lie, {"descr": "<f2", "fortran_order": False, "shape": shape})
    path.write_bytes(zip_content(zipfile.ZIP_STORED, members | {"val.npy": lie.getvalue() + bytes(98)}))
    with pytest.raises(DataError, match="04_model"), limited():
        load_predictions(path, faces)


def test_states_of_random_types(tmp_path):
    """Specs, classes and weights of any type that JSON has."""
    rng, path = random.Random(0), tmp_path / "net.pt"
    values = [None, True, 7, -1, 1e300, "x", [], {}, [1, [2]], {"name": "resnet18"}, {"name": "small_resnet"}]
    model = build_model("baseline_cnn")
    state = {"spec": model.spec, "classes": list(EMOTIONS), "weights": model.state_dict()}
    for _ in range(40):
        entry = rng.choice(list(state))
        spec = {"name": rng.choice(["small_resnet", "local_global", [], 7]), "options": rng.choice(values)}
        torch.save(state | {entry: rng.choice([*values, spec, json.dumps(spec)])}, path)
        with pytest.raises(TrainingError, match=r"net\.pt"), limited():
            load_classifier(path)
