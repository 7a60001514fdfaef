"""Release the compact network in models/: `python -m fer_utils.release` writes its weights, ONNX file and model card.

It is the baseline that notebook 04 chose on val; no other small network of the report is better there. The numbers on
its card come from reports/, except for its size and speed. The export to ONNX needs the packages of the development
group.
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
MEASURED = re.compile(r"^Time on a CPU.*?(?=^## )", re.DOTALL | re.MULTILINE)  # the part of the card about speed


class FromPixels(nn.Module):
    """A classifier that includes the standardization of its input, so it takes raw pixels."""

    def __init__(self, model: nn.Module) -> None:
        """model: a classifier of fer_utils.models."""
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (N,48,48) uint8 to logits (N,7)."""
        return self.model(to_float(pixels))  # (N,1,48,48) -> (N,7)


def export_onnx(model: nn.Module, path: Path) -> None:
    """Write a classifier as ONNX, with input "pixels" (N,48,48) uint8 and output "logits" (N,7) for any N."""
    pixels = torch.zeros(2, 48, 48, dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        FromPixels(model).eval(), (pixels,), path, input_names=["pixels"], output_names=["logits"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("n")}}, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


@torch.inference_mode()
def measure(model: nn.Module, onnx_file: Path) -> pd.DataFrame:
    """Measure the milliseconds for one face and for 64 on this CPU, with PyTorch and with ONNX Runtime."""
    import onnxruntime  # only in the development group

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
    """Write the weights, the ONNX file and the model card to models/."""
    model = load_classifier(find_artifact("reports", NOTEBOOK, WEIGHTS))
    weights = FOLDER / Path(WEIGHTS).with_suffix(".safetensors").name
    save_compact(model, weights)
    model, onnx_file = load_classifier(weights), weights.with_suffix(".onnx")
    export_onnx(model, onnx_file)
    atomic_write(FOLDER / "README.md", card(weights, measure(model, onnx_file)).encode())
    print(f"{weights} ({weights.stat().st_size / 1e6:.1f} MB) and its card are written")


def renew_card() -> None:
    """Update the numbers of the model card from reports/; its measured times stay.

    ValueError if reports/ has no results of the network.
    """
    path, weights = FOLDER / "README.md", FOLDER / Path(WEIGHTS).with_suffix(".safetensors").name
    if not (path.is_file() and weights.is_file()):
        return
    measured = MEASURED.search(path.read_text(encoding="utf8"))
    if not measured:
        raise ValueError(f"{path} has no measured times; run python -m fer_utils.release to write it again")
    text = MEASURED.sub(lambda _: measured[0], card(weights, pd.DataFrame()))
    atomic_write(path, text.encode())


def card(weights: Path, speed: pd.DataFrame) -> str:
    """Format the model card in Markdown with results from reports/. speed: the table from measure."""
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
