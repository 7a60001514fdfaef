"""Evaluate any classifier of emotions on FER2013 from the command line: fer evaluate MODEL.

MODEL is a checkpoint of this course (.pt, .safetensors), an ONNX file, or a table of predictions (.csv, .npz). So
anybody's model can be put on the same table: accuracy with its interval, accuracy without the images that have a copy
in train, macro-F1, recall of each emotion, confusion matrix and calibration.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from fer_utils import metrics
from fer_utils.data import EMOTIONS, FER2013, IMAGE_SIZE, copies_in_train, load_data
from fer_utils.device import select_device
from fer_utils.errors import DataError, TrainingError
from fer_utils.files import decoding, read_file, require_file, require_folder, writable
from fer_utils.models.weights import load_classifier
from fer_utils.paths import project_path
from fer_utils.predict import VIEWS, load_predictions, predict_logits
from fer_utils.report import to_markdown, write_csv

# How an ONNX model wants its pixels: from bytes 0 to 255 to what it was trained on.
SCALES = {
    "0-255": lambda pixels: pixels,
    "0-1": lambda pixels: pixels / 255,
    "-1-1": lambda pixels: pixels / 127.5 - 1,
    "imagenet": lambda pixels: (pixels / 255 - 0.449) / 0.226,  # mean and sd over the three colors
}
BATCH = 256
MAX_SIDE = 1024  # of the images that an ONNX model takes, in pixels
MAX_TABLE_BYTES = 100_000_000  # of a table of predictions


@dataclass(frozen=True)
class OnnxOptions:
    """What an ONNX file does not say about its input and output."""

    size: int  # side of the images it takes, in pixels; 0: as its input says, else 48
    scale: str  # a key of SCALES
    classes: tuple[str, ...]  # its order of the seven emotions


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line asks; returns the exit code: 0, or 2 with one plain sentence."""
    options = parse_options(argv)
    folder = options.out or project_path("outputs") / "evaluate" / f"{options.model.stem}_{options.split}"
    try:
        require_folder(folder)
        dataset = load_data(options.data)
        logits = predict(options, dataset)
        results = evaluate(dataset, options.split, logits)
        save(folder, options, results, logits)
    except (DataError, TrainingError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(describe(options, results))
    print(f"saved in {folder}")
    return 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse itself ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="fer evaluate", description="Evaluate any classifier of emotions on FER2013.")
    parser.add_argument(
        "model", type=Path, help=".pt or .safetensors of this course, .onnx, or predictions: .csv, .npz"
    )
    parser.add_argument("--split", choices=("val", "test"), default="test", help="default: test")
    parser.add_argument("--data", default="auto", help="path of FER2013, or sample; auto looks in $FER_DATA and data/")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--views", choices=tuple(VIEWS), default="none", help="test-time augmentation of a checkpoint")
    parser.add_argument("--out", type=Path, help="folder for the results (default: outputs/evaluate/NAME)")
    onnx = parser.add_argument_group("for ONNX files")
    onnx.add_argument("--size", type=int, default=0, help="side of its input in pixels (default: as the file says)")
    onnx.add_argument("--scale", choices=tuple(SCALES), default="0-1", help="range of its pixels (default: 0-1)")
    parser.add_argument(
        "--classes",
        default=",".join(EMOTIONS),
        help="order of the seven outputs of an ONNX file (default: that of FER2013, %(default)s)",
    )
    options = parser.parse_args(argv)
    options.classes = tuple(name.strip() for name in options.classes.split(","))
    if sorted(options.classes) != sorted(EMOTIONS):
        parser.error(f"--classes must name these seven, in the model's order: {','.join(EMOTIONS)}")
    return options


# --- Predict ----------------------------------------------------------------------------------------------------------


def predict(options: argparse.Namespace, dataset: FER2013) -> np.ndarray:
    """Logits (S,n,7) of the model on the split, in the order of the split's images; S is 1 but for several seeds."""
    path = options.model
    if not path.exists():
        raise DataError(f"{path} does not exist; give a checkpoint, an ONNX file, or a table of predictions")
    require_file(path)
    images = dataset.subset(options.split)[0]
    if path.suffix in (".pt", ".safetensors"):
        device = select_device(options.device)
        return predict_logits(load_classifier(path).to(device), images, device, views=options.views)[None]
    if path.suffix == ".onnx":
        return predict_onnx(path, images, OnnxOptions(options.size, options.scale, options.classes))[None]
    if path.suffix == ".npz":
        return getattr(load_predictions(path, dataset), options.split)
    if path.suffix == ".csv":
        return read_predictions(path, dataset, options.split)[None]
    raise DataError(f"{path.name} is of no known kind; give a .pt, .safetensors, .onnx, .csv or .npz file")


def predict_onnx(path: Path, images: np.ndarray, options: OnnxOptions) -> np.ndarray:
    """Logits (N,7), in the order of EMOTIONS, of an ONNX model for images (N,48,48) uint8.

    Its input is (N,1,H,W) or (N,3,H,W); gray images are repeated for three channels and resized bilinearly. Outputs
    that are probabilities are turned into their logarithms. DataError when the model takes or gives something else.
    """
    session = open_onnx(path)
    channels, side = input_shape(session, path, options.size)
    outputs = []
    with decoding(f"{path.name} cannot be run", "export it again"):
        for start in range(0, len(images), BATCH):
            pixels = resize(images[start : start + BATCH], side)[:, None].repeat(channels, axis=1)  # (n,C,H,W)
            (output, *_) = session.run(None, {session.get_inputs()[0].name: SCALES[options.scale](pixels)})
            outputs.append(output)
        logits = np.concatenate(outputs).astype(np.float32)
    if logits.shape != (len(images), len(EMOTIONS)):
        raise DataError(f"{path.name} gives {logits.shape[1:]} per image; it must give seven logits or probabilities")
    order = [options.classes.index(emotion) for emotion in EMOTIONS]
    return as_logits(logits[:, order], path.name)


def open_onnx(path: Path) -> "onnxruntime.InferenceSession":  # noqa: F821 (imported only where it is needed)
    """An ONNX Runtime session on the CPU; DataError when the package is missing or the file cannot be loaded."""
    try:
        import onnxruntime
    except ImportError:
        raise DataError("ONNX files need the package onnxruntime; install it (pip install onnxruntime)") from None
    with decoding(f"{path.name} cannot be loaded as ONNX", "export it again"):
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def input_shape(session: object, path: Path, size: int) -> tuple[int, int]:
    """Channels and side of a model's input (N,C,H,W). size: what to use where the file leaves the side open."""
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise DataError(f"{path.name} takes {shape}; it must take (N,1,H,W) or (N,3,H,W)")
    side = size or (shape[2] if isinstance(shape[2], int) else IMAGE_SIZE)
    if not 0 < side <= MAX_SIDE:
        raise DataError(f"{path.name} takes images of {side} pixels a side; it must take 1 to {MAX_SIDE}")
    return shape[1], side


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """Images (n,48,48) uint8 -> (n,side,side) float32, 0 to 255."""
    import cv2

    if side == images.shape[1]:
        return images.astype(np.float32)
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR) for image in images]).astype(
        np.float32
    )


def read_predictions(path: Path, dataset: FER2013, split: str) -> np.ndarray:
    """Logits (n,7) from a CSV with a column "name" (the image's name in the data set) and one for each emotion.

    The seven columns hold probabilities or logits. DataError when an image of the split is missing or named twice.
    """
    types = {"name": str} | dict.fromkeys(EMOTIONS, np.float32)
    with decoding(f"{path.name} cannot be read as a table", "give the seven columns as plain numbers"):
        table = pd.read_csv(io.BytesIO(read_file(path, MAX_TABLE_BYTES)), dtype=types)
    missing = [column for column in ("name", *EMOTIONS) if column not in table]
    if missing:
        raise DataError(f"{path.name} lacks the columns {', '.join(missing)}")
    names = dataset.names[dataset.where(split)]
    if table.name.duplicated().any():
        raise DataError(f"{path.name} names {table.name[table.name.duplicated()].iloc[0]} twice")
    rows = table.set_index("name").reindex(names)
    absent = rows.index[rows.isna().any(axis=1)]
    if len(absent):
        raise DataError(f"{path.name} has no prediction for {len(absent):,} images of {split}, such as {absent[0]}")
    return as_logits(rows[list(EMOTIONS)].to_numpy(np.float32), path.name)


def as_logits(outputs: np.ndarray, source: str) -> np.ndarray:
    """Logits (N,7): outputs as they are, or their logarithms if they are probabilities; DataError if not finite."""
    if not np.isfinite(outputs).all():
        raise DataError(f"{source} gives outputs that are not finite numbers")
    if outputs.min() >= 0 and np.allclose(outputs.sum(1), 1, atol=1e-3):
        return np.log(np.maximum(outputs, 1e-12))
    return outputs


# --- Evaluate ---------------------------------------------------------------------------------------------------------


def evaluate(dataset: FER2013, split: str, logits: np.ndarray) -> dict[str, object]:
    """What a notebook would say of these logits (S,n,7); recall, confusion and calibration are those of the first seed.

    summary: of metrics.summarize; recall: a table; confusion: counts (7,7); ece: expected calibration error;
    confidence: mean probability of the predicted emotion.
    """
    labels = dataset.subset(split)[1]
    probs = softmax(logits[0].astype(float), axis=1)
    predicted = logits[0].argmax(1)
    return {
        "summary": metrics.summarize(labels, logits, copies_in_train(dataset)[dataset.where(split)]),
        "recall": metrics.per_class_recall(labels, predicted),
        "confusion": metrics.confusion_matrix(labels, predicted),
        "ece": metrics.ece(labels, probs),
        "confidence": float(probs.max(1).mean()),
    }


def describe(options: argparse.Namespace, results: dict[str, object]) -> str:
    """The results as text."""
    row = results["summary"]
    lines = [
        f"\n{options.model.name} on {options.split}, n = {row['n']:,}, {row['seeds']} seed(s)",
        f"accuracy                   {row['accuracy']:.1%} (95 % interval {row['ci_low']:.1%} to {row['ci_high']:.1%})",
        f"accuracy without copies    {row['accuracy_no_duplicates']:.1%} (images with a copy in train left out)",
        f"macro-F1                   {row['macro_f1']:.3f}",
        f"mean confidence            {results['confidence']:.1%}; expected calibration error {results['ece']:.3f}",
        "",
        to_markdown(results["recall"], 3),
        "",
        to_markdown(results["confusion"].reset_index(), 0),
    ]
    return "\n".join(lines)


def save(folder: Path, options: argparse.Namespace, results: dict[str, object], logits: np.ndarray) -> None:
    """Write summary.csv, recall.csv, confusion_matrix.csv and logits.npz; DataError if they cannot be written."""
    row = {"model": options.model.name, "split": options.split} | results["summary"]
    row |= {"ece": results["ece"], "confidence": results["confidence"]}
    with writable(folder):
        write_csv(pd.DataFrame([row]), folder / "summary.csv")
        write_csv(results["recall"], folder / "recall.csv")
        write_csv(results["confusion"].reset_index(), folder / "confusion_matrix.csv")
        np.savez_compressed(folder / "logits.npz", logits=logits)
