"""Load ImageNet weights, if they are available."""

from pathlib import Path

import torch
from torchvision.models import get_model_weights

from fer_utils.errors import TrainingError
from fer_utils.files import decoding
from fer_utils.internet import download, why_out_of_reach
from fer_utils.models.weights import read_torch_file


def imagenet_weights(name: str) -> dict[str, torch.Tensor] | None:
    """Load the ImageNet weights of a torchvision network from torch's cache or the internet; None if unavailable.

    name: torchvision's name of the network, e.g. "resnet18". Prints one line about the outcome. Without an internet
    connection, or with one that stalls, this takes seconds; with the environment variable FER_OFFLINE=1 it does not
    try.
    """
    url = get_model_weights(name).IMAGENET1K_V1.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    sha256 = cached.stem.rpartition("-")[2]  # the file is called resnet18-f37072fd.pth
    reason = "" if cached.exists() else why_out_of_reach(url) or download(url, cached, sha256)
    if not reason:
        try:
            with decoding("damaged", "", TrainingError):
                state = read_torch_file(cached)
        except TrainingError:
            reason = f"{cached} is damaged, delete it"
    if reason:
        print(f"ImageNet weights are out of reach ({reason}): the network starts from scratch")
        return None
    print(f"ImageNet weights: {cached.name}")
    return state
