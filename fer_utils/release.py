"""Release the small network in models/: `python -m fer_utils.release` writes its weights, ONNX files and model card.

It is the network that notebook 12 chose on val among those that cost no more than one EfficientNet-B0. The results on
its card come from reports/; size, speed and the accuracy of each file on val are measured here. This needs FER2013 in
data/ (or --data), and the packages of the development group.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fer_utils.augment import to_float
from fer_utils.cost import count_gmacs, count_params, median_ms
from fer_utils.data import EMOTIONS, FER2013, load_data
from fer_utils.device import device_name
from fer_utils.metrics import accuracy
from fer_utils.models.weights import load_classifier, save_compact
from fer_utils.paths import ASSETS, PROJECT_ROOT, atomic_write, find_artifact
from fer_utils.report import to_markdown

NOTEBOOK, WEIGHTS = "12_best_model", "small_model.pt"
FOLDER = PROJECT_ROOT / "models"
COMPACT = FOLDER / "small_model.safetensors"
ONNX, INT8 = FOLDER / "small_model.onnx", FOLDER / "small_model_int8.onnx"
CALIBRATION_IMAGES = 512  # of train: they tell the ranges of activations for 8-bit integers
LEARNED_FROM = {  # model of notebook 12 -> what it learned from
    "small": "the labels",
    "distilled": "the predictions of an ensemble (knowledge distillation)",
    "distilled_out_of_fold": "the predictions of networks that had not seen the image (distillation out of fold)",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the weights, both ONNX files and the model card to models/."""
    parser = argparse.ArgumentParser(prog="python -m fer_utils.release", description="Write models/ from reports/.")
    parser.add_argument("--data", default="auto", help="path to FER2013 (default: what is in data/)")
    dataset = load_data(parser.parse_args(argv).data)
    if dataset.form == "sample":
        parser.error("the release needs FER2013 itself: put it into data/, or give its path with --data")
    save_compact(load_classifier(find_artifact("reports", NOTEBOOK, WEIGHTS)), COMPACT)
    model = load_classifier(COMPACT)  # as it ships: in half precision
    export_onnx(model, ONNX)
    quantize(model, dataset.subset("train")[0], INT8)
    files = f"{to_markdown(measure(model, dataset), 2)}\n\n"
    files += f"Accuracy on val: PublicTest, n = {len(dataset.where('val')):,}. Times: from pixels to logits, on "
    files += f"{device_name(torch.device('cpu'))}."
    atomic_write(FOLDER / "README.md", card(model, files).encode())
    print(f"{FOLDER} is written: {', '.join(path.name for path in sorted(FOLDER.iterdir()))}")


# --- ONNX -------------------------------------------------------------------------------------------------------------


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
    """Write a classifier as ONNX, with input "pixels" (N,48,48) uint8 and output "logits" (N,7) for any N.

    Its weights are stored in half precision, and used in single precision.
    """
    import onnx  # only in the development group

    exported = _export(model)
    _store_in_half(exported.graph)
    onnx.checker.check_model(exported)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(exported, path)


def _export(model: nn.Module) -> "onnx.ModelProto":  # noqa: F821 - only maintainers have this package
    pixels = torch.zeros(2, 48, 48, dtype=torch.uint8)
    program = torch.onnx.export(
        FromPixels(model).eval(), (pixels,), input_names=["pixels"], output_names=["logits"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("n")}}, dynamo=True, verbose=False,
    )  # fmt: skip
    exported = program.model_proto
    for part in (exported.graph, *exported.graph.node, *exported.graph.input, *exported.graph.output):
        del part.metadata_props[:]  # traces of the export, with paths of this machine
    return exported


def _store_in_half(graph: "onnx.GraphProto") -> None:  # noqa: F821
    """Replace each tensor of float32 weights by one of float16 and a node that converts it."""
    import onnx

    for tensor in [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims)]:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        half = onnx.numpy_helper.from_array(values, f"{tensor.name}_half")
        graph.initializer.remove(tensor)
        graph.initializer.append(half)
        graph.node.insert(0, onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))


def quantize(model: nn.Module, images: np.ndarray, path: Path) -> None:
    """Write a classifier as ONNX like export_onnx, but with weights and activations of 8 bits.

    images: (n,48,48) uint8. A few of them, drawn at random, give the ranges of the activations.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    drawn = np.random.default_rng(0).choice(len(images), CALIBRATION_IMAGES, replace=False)

    class Reader(CalibrationDataReader):
        """Hands out the images in batches."""

        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(np.split(images[drawn], 8))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch}

    quantize_static(_export(model), path, Reader(), per_channel=True, activation_type=QuantType.QUInt8)


# --- Model card -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(model: nn.Module, dataset: FER2013) -> pd.DataFrame:
    """Measure each file: size, accuracy on val, and milliseconds for one face and for 64 on this CPU."""
    import onnxruntime  # only in the development group

    images, labels = dataset.subset("val")
    from_pixels = FromPixels(model).eval()
    runs = {COMPACT: ("PyTorch", lambda pixels: from_pixels(torch.from_numpy(pixels)).numpy())}
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    for path in (ONNX, INT8):
        session = onnxruntime.InferenceSession(path, threads, providers=["CPUExecutionProvider"])
        runs[path] = ("ONNX Runtime", lambda pixels, session=session: session.run(None, {"pixels": pixels})[0])
    rows = []
    for path, (program, run) in runs.items():
        logits = np.concatenate([run(batch) for batch in np.array_split(images, 16)])
        row = {"file": path.name, "MB": path.stat().st_size / 1e6, "with": program}
        row["val (%)"] = 100 * accuracy(labels, logits.argmax(1))
        for n in (1, 64):
            row[f"ms, batch {n}"] = median_ms(partial(run, images[:n]), repeats=50, warm_up=10)
        rows.append(row)
    return pd.DataFrame(rows)


def card(model: nn.Module, files: str) -> str:
    """Format the model card in Markdown. files: what the release has measured; all else is from reports/."""
    reports = PROJECT_ROOT / "reports"
    choice = pd.read_csv(reports / "tables" / "12_choice.csv")  # best on val first
    chosen = choice.model[np.isclose(choice.gmacs, count_gmacs(model))].iloc[0]
    summary = pd.read_csv(reports / "summary.csv")
    row = summary.query("notebook == @NOTEBOOK and model == @chosen and split == 'test'").iloc[0].to_dict()
    recall = pd.read_csv(reports / "tables" / "12_recall.csv")
    of_all = recall[recall.emotion == "all"].iloc[0].to_dict()
    template = (ASSETS / "model_card.md").read_text(encoding="utf8")
    return template.format(
        **row | of_all | {"epochs": int(row["epochs"]), "params": count_params(model)}, over_seeds=row["accuracy"],
        without=row["accuracy_no_duplicates"], learned_from=LEARNED_FROM[chosen], val=model.origin["val"],
        date=model.origin["date"], seed=model.origin["settings"]["seed"], emotions=", ".join(EMOTIONS),
        recall_table=to_markdown(recall, 3), files=files, calibration_images=CALIBRATION_IMAGES,
    )  # fmt: skip


if __name__ == "__main__":
    main()
