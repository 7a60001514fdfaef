"""The compact network that ships with the project, in models/: `python -m fer_utils.release` makes it anew.

It is the baseline that notebook 04 chose on val, where no other small network of the report does better. Its card
repeats numbers of reports/ and has none of its own but its size and speed. Exporting to ONNX needs the packages of the
development group.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fer_utils.augment import to_float
from fer_utils.cost import median_ms
from fer_utils.data.constants import EMOTIONS
from fer_utils.models.weights import load_classifier, save_compact
from fer_utils.paths import ASSETS, PROJECT_ROOT, atomic_write, find_artifact
from fer_utils.report import to_markdown

NOTEBOOK, MODEL, WEIGHTS = "04_baseline_cnn", "baseline_cnn", "baseline_cnn_seed0.pt"
FOLDER = PROJECT_ROOT / "models"
MEASURED = re.compile(r"^Time on a CPU.*?(?=^## )", re.DOTALL | re.MULTILINE)  # the part of the card with speeds


class FromPixels(nn.Module):
    """A classifier with its standardization: it takes pixels as they are, (N,48,48) uint8, and returns logits (N,7)."""

    def __init__(self, model: nn.Module) -> None:
        """model: a classifier of fer_utils.models."""
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N,48,48) uint8 -> (N,7) logits."""
        return self.model(to_float(pixels))


def export_onnx(model: nn.Module, path: Path) -> None:
    """Write a classifier as ONNX: input "pixels" (N,48,48) uint8, output "logits" (N,7), any N."""
    pixels = torch.zeros(2, 48, 48, dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        FromPixels(model).eval(), (pixels,), path, input_names=["pixels"], output_names=["logits"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("n")}}, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


@torch.inference_mode()
def measure(model: nn.Module, onnx_file: Path) -> pd.DataFrame:
    """Milliseconds for one face and for 64, with PyTorch and with ONNX Runtime, on this CPU."""
    import onnxruntime  # of the development group

    from_pixels = FromPixels(model).eval()
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    runs = {
        "PyTorch": lambda pixels: from_pixels(torch.from_numpy(pixels)),
        "ONNX Runtime": lambda pixels: session.run(None, {"pixels": pixels}),
    }
    rows = []
    for name, run in runs.items():
        row = {"with": name}
        for n in (1, 64):
            row[f"ms, batch {n}"] = median_ms(partial(run, np.zeros((n, 48, 48), np.uint8)), repeats=20, warm_up=10)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Write models/: weights, ONNX and card."""
    model = load_classifier(find_artifact("reports", NOTEBOOK, WEIGHTS))
    weights = FOLDER / Path(WEIGHTS).with_suffix(".safetensors").name
    save_compact(model, weights)
    model, onnx_file = load_classifier(weights), weights.with_suffix(".onnx")
    export_onnx(model, onnx_file)
    atomic_write(FOLDER / "README.md", card(weights, measure(model, onnx_file)).encode())
    print(f"{weights} ({weights.stat().st_size / 1e6:.1f} MB) and its card are written")


def renew_card() -> None:
    """Give the card the numbers of reports/ as they are now; the times in it were measured and stay.

    ValueError when reports/ lacks the network.
    """
    path, weights = FOLDER / "README.md", FOLDER / Path(WEIGHTS).with_suffix(".safetensors").name
    if not (path.is_file() and weights.is_file()):
        return
    measured = MEASURED.search(path.read_text(encoding="utf8"))
    if not measured:
        raise ValueError(f"{path} has no measured times; python -m fer_utils.release makes it anew")
    text = MEASURED.sub(lambda _: measured[0], card(weights, pd.DataFrame()))
    atomic_write(path, text.encode())


def card(weights: Path, speed: pd.DataFrame) -> str:
    """The model card, in Markdown; its results come from reports/. speed: of measure."""
    template = (ASSETS / "model_card.md").read_text(encoding="utf8")
    reports = PROJECT_ROOT / "reports"
    summary = pd.read_csv(reports / "summary.csv").query(
        "notebook == @NOTEBOOK and model == @MODEL and split == 'test'"
    )
    if summary.empty:
        raise ValueError(f"reports/summary.csv has no results of {MODEL} in {NOTEBOOK}; run ./run_all.sh --only 04")
    recall = pd.read_csv(reports / "tables" / f"{NOTEBOOK[:2]}_recall.csv")
    row = summary.iloc[0].to_dict()
    return template.format(
        **row | {"epochs": int(row["epochs"])}, file=weights.name, onnx=weights.with_suffix(".onnx").name,
        size=weights.stat().st_size / 1e6, emotions=", ".join(EMOTIONS), recall=to_markdown(recall, 3),
        speed=to_markdown(speed, 2), threads=torch.get_num_threads(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
