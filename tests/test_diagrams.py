"""Diagrams of networks: their shapes are those of the networks, and everything that they show is whole."""

import itertools

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import torch
from torch import nn

from fer_utils.augment import to_float
from fer_utils.diagrams import Diagram, measure_shapes, plot_diagrams
from fer_utils.models import build_model, make_spec
from fer_utils.paths import PROJECT_ROOT
from fer_utils.pipeline.stages import STAGES

FACE = torch.rand(1, 1, 48, 48)

# What each notebook must draw, counted by hand from the networks' descriptions.
RESNET18 = "1x48x48 64x12x12 64x12x12 128x6x6 256x3x3 512x2x2"
SHAPES = {
    "03": "1x48x48 64x24x24 64x12x12 64x12x12 128x6x6 256x3x3 512x2x2 512 256 8 "
    "64x12x12 128x6x6 128x6x6 128x6x6 128x6x6",
    "04": "1x48x48 32x48x48 32x24x24 64x24x24 64x12x12 128x12x12 128x6x6 4608 512 7",
    "05": f"{RESNET18} 512x1x1 32x1x1 512x1x1 512x2x2 512 256 7",
    "06": "1x48x48 32x24x24 16x24x24 24x12x12 40x6x6 80x3x3 112x3x3 192x2x2 320x2x2 1280x2x2 1280 7 "
    "16x24x24 96x24x24 96x12x12 96x1x1 4x1x1 96x1x1 96x12x12 24x12x12",
    "10": f"{RESNET18} 512 256 7 1x48x48 64x48x48 128x24x24 256x12x12 512x6x6 512x3x3 512x1x1 512 256 7",
    "11": "1x48x48 64x12x12 256x12x12 512x6x6 1024x3x3 2048x2x2 2048 4x256x6x6 256x6x6 256 2304 256 7",
}


class TwoPaths(nn.Module):
    """A map, a side path that averages it, and their product."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.product = nn.Identity()

    def forward(self, images):
        features = self.conv(images)
        return self.product(features * self.pool(features))


@pytest.fixture
def two_paths():
    diagram = Diagram(TwoPaths(), FACE, "Two paths")
    diagram.chain({"image": "face", "conv": "conv"})
    diagram.chain({"pool": "average"}, after="conv", lane=1, is_new=True)
    diagram.join("product", "scale", ("conv", "pool"), "×")
    return diagram


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 12), ("middle", 24)])
def test_shapes_are_those_of_the_network(stem, side):
    network = build_model("resnet18", stem=stem)
    shapes = measure_shapes(network, FACE)
    assert shapes["image"] == (1, 48, 48)
    assert shapes["backbone.layer1"] == shapes["input of backbone.layer2"] == (64, side, side)
    assert shapes["input of head"] == tuple(network.backbone.eval()(FACE).shape[1:])
    assert shapes["head"] == (7,)


def test_measuring_leaves_the_network_as_it_was():
    network = TwoPaths().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_shapes(network, FACE)
    assert network.training and all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(RuntimeError):
        measure_shapes(network, torch.rand(1, 3, 48, 48))
    assert not any(module._forward_hooks for module in network.modules())
    assert network.training


def test_what_is_drawn_is_what_was_measured(two_paths):
    fig = plot_diagrams(two_paths)
    [ax] = fig.axes
    texts = [text.get_text() for text in ax.texts]
    assert {"Two paths", "1x48x48", "4x24x24", "4x1x1", "scale", "×"} <= set(texts)
    assert texts.count("4x24x24") == 2  # the map and the product
    assert list(two_paths.table()["shape"]) == ["1x48x48", "4x24x24", "4x1x1", "4x24x24"]
    [picture] = ax.images
    assert torch.equal(torch.from_numpy(picture.get_array().data), FACE[0, 0])
    plt.close(fig)


def test_a_larger_map_is_drawn_higher_and_one_with_more_channels_broader(two_paths):
    blocks = two_paths.blocks
    shapes = Diagram(build_model("baseline_cnn"), FACE)
    shapes.chain({"features.0": "conv", "features.2": "pooling", "features.3": "conv"})
    large, small, more_channels = (block.size for block in shapes.blocks.values())
    assert large[1] == 2 * small[1] and large[0] == small[0] < more_channels[0]
    assert [blocks[name].column for name in ("image", "conv", "pool", "product")] == [0, 1, 2, 3]


def test_an_unknown_module_is_named():
    with pytest.raises(ValueError, match="no module 'backbone' ran"):
        Diagram(TwoPaths(), FACE).chain({"backbone": "all of it"})


def stages_of_efficientnet():
    return pd.DataFrame({"stage": range(9), "layers": ["3x3", *["1 MBConv"] * 7, "1x1"]})


# What the diagram cells of a notebook take over from earlier cells.
TAKEN_OVER = {
    "03": lambda: {"network": build_model("landmark_net")},
    "04": lambda: {
        "layers": nn.Sequential(*(layer for part in build_model("baseline_cnn").children() for layer in part))
    },
    "05": lambda: {"build_model": build_model},
    "06": lambda: {
        "networks": {"imagenet": build_model("efficientnet_b0")},
        "stage_table": stages_of_efficientnet(),
        "example_row": 0,
    },
    "10": lambda: {
        "networks": ["resnet18", "vgg16"],
        "specs": {name: make_spec(name) for name in ("resnet18", "vgg16")},
        "build_model": build_model,
        "count_gmacs": lambda model: 0.123,
    },
    "11": lambda: {"network": build_model("local_global")},
}


def run_diagram_cells(number):
    """All names after the cells of a notebook that make its diagrams."""
    images = (255 * FACE[0]).byte().numpy()  # (1,48,48)
    names = {"face": FACE, "batch": FACE, "train_images": images, "val_images": images, "Diagram": Diagram}
    names |= {"torch": torch, "nn": nn, "to_float": to_float} | TAKEN_OVER[number]()
    [path] = (PROJECT_ROOT / "notebooks").glob(f"{number}_*.ipynb")
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.id in ("diagram-parts", "diagram", "block-diagram"):
            exec(cell.source, names)
    return names


@pytest.mark.parametrize("number", SHAPES)
def test_each_notebook_draws_its_network(number):
    names = run_diagram_cells(number)
    diagrams = names.get("diagrams") or [names[name] for name in ("diagram", "block") if name in names]
    labels = [block.label for diagram in diagrams for block in diagram.blocks.values()]
    assert labels == SHAPES[number].split()

    fig = plot_diagrams(*diagrams)
    texts = fig.axes[0].texts
    assert [text.get_text() for text in texts if text.get_text() in labels] == labels
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 for box in boxes), "a text is cut off"
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2)), "a text hides another"
    plt.close(fig)


@pytest.mark.parametrize("number", SHAPES)
def test_each_diagram_is_published(number):
    [stage] = [stage for stage in STAGES if stage.name.startswith(number)]
    assert f"figures/{number}_network.png" in stage.gives
    code = (PROJECT_ROOT / "notebooks" / f"{stage.name}.ipynb").read_text()
    assert f'\\"{number}_network\\"' in code
