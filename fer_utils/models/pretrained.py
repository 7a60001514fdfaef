"""Load ImageNet weights, if they are available."""

import pickle
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.models import get_model_weights

from fer_utils.internet import why_out_of_reach


def imagenet_weights(name: str) -> dict[str, torch.Tensor] | None:
    """Load the ImageNet weights of a torchvision network from torch's cache or the internet; None if unavailable.

    name: torchvision's name of the network, e.g. "resnet18". Prints one line about the outcome. Without an internet
    connection this takes a few seconds at most; with the environment variable FER_OFFLINE=1 it does not try.
    """
    weights = get_model_weights(name).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    reason = "" if cached.exists() else why_out_of_reach(weights.url)
    try:
        state = None if reason else weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = f"{cached} is damaged, delete it" if cached.exists() else type(error).__name__
    if reason:
        print(f"ImageNet weights are out of reach ({reason}): the network starts from scratch")
        return None
    print(f"ImageNet weights: {cached.name}")
    return state
