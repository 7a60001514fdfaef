"""Weights of trained models on disk: written whole, read back safely, refused when they do not fit."""

import json
import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fer_utils.data.constants import EMOTIONS
from fer_utils.errors import TrainingError
from fer_utils.models.build import build_model


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a trained model with its spec and what its outputs mean, for load_weights and load_model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    torch.save({**_identity(model), "weights": model.state_dict()}, fresh)
    os.replace(fresh, path)


def save_compact(model: nn.Module, path: Path) -> None:
    """Write the weights in half precision as safetensors, at half the size, for load_classifier.

    Such a file holds numbers and nothing that could run, and other programs can read it (Hugging Face's format).
    """
    weights = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, about = path.with_suffix(".tmp"), {k: json.dumps(v) for k, v in _identity(model).items()}
    save_file({name: t.contiguous() for name, t in weights.items()}, fresh, metadata=about)
    os.replace(fresh, path)


def load_model(path: str | Path) -> nn.Module:
    """The model in a file of save_weights or save_compact, built from its spec, in evaluation mode.

    Raises TrainingError when the file is missing or damaged, or holds a network that cannot be built from a spec alone.
    """
    state = _read_weights(path)
    try:
        model = build_model(state["spec"])
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{path} holds a network that cannot be built here ({error})") from None
    return _fill(model, state, path)


def load_classifier(path: str | Path) -> nn.Module:
    """As load_model; TrainingError when it does not answer with the seven emotions."""
    model = load_model(path)
    if hasattr(model, "outputs"):
        raise TrainingError(f"{path} holds a {model.spec['name']}, which is not a classifier of emotions")
    return model


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Put saved weights into a model of the same spec, and set it to evaluation mode.

    Raises TrainingError when the file is missing, damaged, or of another spec or class order.
    """
    return _fill(model, _read_weights(path), path)


def _fill(model: nn.Module, state: dict, path: str | Path) -> nn.Module:
    require_same(signature(model), _signature(state), path)
    model.load_state_dict(state["weights"])
    return model.eval()


def load_backbone(model: nn.Module, path: str | Path) -> nn.Module:
    """Let a model start from the trained backbone of another, as save_weights wrote it; its head stays as it is.

    Both must have a backbone under that name, with the same stem and tensors. Raises TrainingError when they do not, or
    when the file is missing or damaged.
    """
    state = _read_weights(path)
    there, here = _backbone(state["weights"]), _backbone(model.state_dict())
    if not there or not here:
        where = path if not there else f"this {type(model).__name__}"
        raise TrainingError(f'there is no "backbone" in {where}; both networks must be made of a backbone and a head')
    expected = {"stem": _stem(_identity(model)["spec"])} | _shapes(here)
    found = {"stem": _stem(state["spec"])} | _shapes(there)
    require_same(expected, found, path)
    model.load_state_dict(there, strict=False)
    return model


def _stem(spec: dict) -> object:
    """The stem of a network; the shapes of tensors alone do not tell all stems apart."""
    return spec["options"].get("stem", "imagenet")


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in weights.items()}


def _backbone(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}


def _read_weights(path: str | Path) -> dict:
    """What save_weights or save_compact wrote; TrainingError when the file is missing or damaged."""
    path = Path(path)
    state = (_read_compact if path.suffix == ".safetensors" else read_torch_file)(path) if path.exists() else None
    if not isinstance(state, dict) or not state.keys() >= {"spec", "classes", "weights"}:
        raise TrainingError(f"{path} is missing or damaged; run the notebook that trains this model to make it")
    return state


def read_torch_file(path: Path) -> dict | None:
    """A file of torch.save; None, and a printed line, when it is damaged.

    weights_only refuses pickles that would run code: such a file counts as damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        print(f"{path.name} cannot be read ({type(error).__name__}) and is ignored", flush=True)
        return None


def _read_compact(path: Path) -> dict | None:
    """A file of save_compact, in single precision again; None, and a printed line, when it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            about = {key: json.loads(file.metadata()[key]) for key in ("spec", "classes")}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path.name} cannot be read ({type(error).__name__}) and is ignored", flush=True)
        return None
    return about | {"weights": {k: t.float() if t.is_floating_point() else t for k, t in weights.items()}}


def signature(model: nn.Module) -> dict:
    """What must agree before weights are put into a model: its spec, what its outputs mean, and all shapes; flat."""
    return _signature({**_identity(model), "weights": model.state_dict()})


def _identity(model: nn.Module) -> dict:
    """What is saved with weights: the spec and what the outputs mean."""
    spec = getattr(model, "spec", {"name": type(model).__name__, "options": {}})
    return {"spec": spec, "classes": list(getattr(model, "outputs", EMOTIONS))}


def _signature(state: dict) -> dict:
    spec = state["spec"]
    return {"network": spec["name"], **spec["options"], "classes": list(state["classes"]), **_shapes(state["weights"])}


def require_same(expected: dict, found: dict, path: str | Path) -> None:
    """Raise TrainingError with the first differences between two flat descriptions."""
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if keys:
        differences = "; ".join(f"{key}: {found.get(key)} there, {expected.get(key)} here" for key in keys[:3])
        raise TrainingError(f"{path} belongs to another run ({differences}); delete it or use its settings")
