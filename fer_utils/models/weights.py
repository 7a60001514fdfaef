"""Save and load the weights of trained models; weights that do not fit a model are refused."""

import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fer_utils.data.constants import EMOTIONS
from fer_utils.errors import TrainingError
from fer_utils.files import decoding, require_file
from fer_utils.models.build import build_model

ABOUT = ("spec", "classes", "origin")  # what is saved along with weights


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a trained model with its spec, the names of its outputs, and its origin.

    The origin says what the model was trained on and how good it is on val, see Experiment.train. load_weights and
    load_model read such a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save({**_about(model), "weights": model.state_dict()}, unfinished)
    os.replace(unfinished, path)


def save_compact(model: nn.Module, path: Path) -> None:
    """Write the weights in half precision as safetensors, half the size of save_weights.

    Such a file (Hugging Face's format) holds only numbers, no code, and many programs can read it. load_model and
    load_classifier read it here.
    """
    weights = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, about = path.with_suffix(".tmp"), {k: json.dumps(v) for k, v in _about(model).items()}
    save_file({name: t.contiguous() for name, t in weights.items()}, unfinished, metadata=about)
    os.replace(unfinished, path)


def load_model(path: str | Path) -> nn.Module:
    """Load a model from a file of save_weights or save_compact; it is built from its spec, in evaluation mode.

    Raises TrainingError if the file is missing or damaged, or if the network cannot be built from its spec alone.
    """
    state = _read_weights(path)
    with _using(path):
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            outline = build_model(state["spec"])
        require_same(signature(outline), _signature(state), path)
        model = _fill(build_model(state["spec"]), state, path)
    model.origin = state.get("origin", {})
    return model


def load_classifier(path: str | Path) -> nn.Module:
    """Load a model like load_model; TrainingError if it does not classify the seven emotions."""
    model = load_model(path)
    if hasattr(model, "outputs"):
        raise TrainingError(f"{path} holds a {_identity(model)['spec']['name']}, which is not a classifier of emotions")
    return model


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load saved weights into a model of the same spec and set it to evaluation mode.

    Raises TrainingError if the file is missing or damaged, or has another spec or class order.
    """
    state = _read_weights(path)
    with _using(path):
        return _fill(model, state, path)


def read_origin(path: str | Path) -> dict:
    """Read only the origin of saved weights, see save_weights; {} for a file without one, or a damaged file."""
    try:
        return _read_weights(path).get("origin", {})
    except TrainingError:
        return {}


def _using(path: str | Path) -> AbstractContextManager[None]:
    return decoding(f"{path} holds a network that cannot be used here", "train it again", TrainingError)


def _fill(model: nn.Module, state: dict, path: str | Path) -> nn.Module:
    require_same(signature(model), _signature(state), path)
    _require_finite(state["weights"], path)
    model.load_state_dict(state["weights"])
    return model.eval()


def load_backbone(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the backbone of another trained model, as save_weights wrote it; the head stays as it is.

    Both models need a submodule "backbone" with the same stem and tensors. Raises TrainingError if they differ, or if
    the file is missing or damaged.
    """
    state = _read_weights(path)
    there, here = _backbone(state["weights"]), _backbone(model.state_dict())
    if not there or not here:
        where = path if not there else f"this {type(model).__name__}"
        raise TrainingError(f'there is no "backbone" in {where}; both networks need a backbone and a head')
    expected = {"stem": _stem(_identity(model)["spec"])} | _shapes(here)
    actual = {"stem": _stem(state["spec"])} | _shapes(there)
    with _using(path):
        require_same(expected, actual, path)
        _require_finite(there, path)
        model.load_state_dict(there, strict=False)
    return model


def _stem(spec: dict) -> object:
    """Return the stem of a network: some stems have tensors of the same shapes."""
    return spec["options"].get("stem", "imagenet")


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in weights.items()}


def _backbone(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}


def _read_weights(path: str | Path) -> dict:
    """Read a file of save_weights or save_compact; TrainingError if it is missing or damaged."""
    path = Path(path)
    fix = "run the notebook that trains this model to make it"
    if not path.exists():
        raise TrainingError(f"{path} is missing; {fix}")
    with decoding(f"{path} is damaged", fix, TrainingError):
        state = _read_compact(path) if path.suffix == ".safetensors" else read_torch_file(path)
        _require_state(state)
        return state


def read_torch_file(path: Path) -> Any:
    """Read a file of torch.save; an error of any class if it is damaged, so call it inside a block of `decoding`.

    weights_only refuses pickles that contain code. torch.save does not compress, so a compressed file is an attack.
    """
    require_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, and PyTorch does not write such files")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message explains how to run the code all the same
        raise ValueError("it holds code, or was not written by torch.save") from None


def _read_compact(path: Path) -> dict:
    """Read a file of save_compact in single precision."""
    require_file(path)
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        about = {key: json.loads(text) for key, text in file.metadata().items() if key in ABOUT}
    return about | {"weights": {k: t.float() if t.is_floating_point() else t for k, t in weights.items()}}


def _require_state(state: Any) -> None:
    """Raise TypeError or KeyError unless a state has the entries of save_weights, of the right types."""
    spec, classes, weights = (state[key] for key in ("spec", "classes", "weights"))
    types: list[tuple[object, type]] = [
        (spec["name"], str),
        (spec["options"], Mapping),
        (classes, list),
        (weights, Mapping),
    ]
    types += [(state.get("origin", {}), Mapping)]
    types += [(name, str) for name in (*classes, *weights)]
    types += [(tensor, torch.Tensor) for tensor in weights.values()]
    for value, expected in types:
        if not isinstance(value, expected):
            raise TypeError(f"it holds a {type(value).__name__} in place of a {expected.__name__}")


def _require_finite(weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        raise TrainingError(f"{path} holds weights that are not finite, such as {bad[0]}; train this model again")


def signature(model: nn.Module) -> dict:
    """Return all that must agree before weights are loaded into a model: spec, outputs and shapes, in a flat dict."""
    return _signature({**_identity(model), "weights": model.state_dict()})


def _about(model: nn.Module) -> dict:
    """Return what is saved along with weights: identity and origin."""
    return _identity(model) | {"origin": getattr(model, "origin", {})}


def _identity(model: nn.Module) -> dict:
    """Return what must agree when weights are loaded, besides shapes: the spec and the names of the outputs."""
    spec = getattr(model, "spec", {"name": type(model).__name__, "options": {}})
    return {"spec": spec, "classes": list(getattr(model, "outputs", EMOTIONS))}


def _signature(state: dict) -> dict:
    spec = state["spec"]
    return {"network": spec["name"], **spec["options"], "classes": list(state["classes"]), **_shapes(state["weights"])}


def require_same(expected: dict, actual: dict, path: str | Path) -> None:
    """Raise TrainingError, with the first three differences, unless two flat dicts are equal."""
    keys = [key for key in {**expected, **actual} if expected.get(key) != actual.get(key)]
    if keys:
        differences = "; ".join(f"{key}: {actual.get(key)} there, {expected.get(key)} here" for key in keys[:3])
        raise TrainingError(f"{path} belongs to another run ({differences}); delete it or use its settings")


def checksum(weights: nn.Module | Mapping[str, torch.Tensor] | None) -> int:
    """A number that changes with the weights of a network, or with those in a state dict; 0 for None."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights or {}
    return zlib.crc32(b"".join(tensor.cpu().numpy().tobytes() for tensor in state.values()))
