"""Draw networks as diagrams. All shapes are measured with a forward pass; none is typed.

A notebook names the modules of its network that get a block, and how they follow each other:

    diagram = Diagram(network, face, "ResNet18")
    diagram.chain({"image": "face", "backbone.maxpool": "stem", "backbone.layer1": "stage 1"})
    fig = plot_diagrams(diagram)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from torch import nn

# Drawn sizes in inches.
PIXEL = 0.025  # height of one pixel of a map
DOUBLING = 0.045  # breadth of a map per doubling of its channels
VALUES = 0.09  # length of a vector per doubling of its values
DEPTH = 0.25  # how far a block goes back, as a share of its height
MARGIN, TEXT_ABOVE, TEXT_BELOW, TITLE, LEGEND = 0.08, 0.3, 0.2, 0.35, 0.45

MAP, VECTOR, NEW, LINE = "#56B4E9", "#E69F00", "#009E73", "#404040"
LEGEND_TEXT = (
    "Blocks are maps, labeled channels x height x width. Their height shows the pixels (to scale), their breadth the"
    " channels (logarithmic).\nBars are vectors, or maps of 1x1 pixels. Their length shows the number of values"
    " (logarithmic)."
)
NEW_TEXT = " Green: what this notebook is about."


@dataclass(frozen=True)
class Block:
    """One tensor of a network."""

    name: str  # of the module that computes it, a key of measure_shapes
    text: str  # how it is computed; stands above it
    shape: tuple[int, ...]  # without the batch
    column: int
    lane: int  # 0: the main path; 1: the path below it
    after: tuple[str, ...]  # names of the blocks it is computed from
    sign: str  # drawn where two of them meet, such as "+"; "": nothing
    is_new: bool  # drawn in another color

    @property
    def label(self) -> str:
        """The shape as text: "64x24x24"."""
        return "x".join(map(str, self.shape))

    @property
    def is_vector(self) -> bool:
        """Whether it has no positions: (512,) and (512,1,1)."""
        return len(self.shape) == 1 or self.shape[-2:] == (1, 1)

    @property
    def copies(self) -> int:
        """Number of maps of the same shape: 4 for (4,256,6,6)."""
        return self.shape[0] if len(self.shape) == 4 else 1

    @property
    def size(self) -> tuple[float, float]:
        """Breadth and height of one copy in inches."""
        if self.is_vector:
            return 0.11, VALUES * (1 + math.log2(self.shape[0]))
        channels, height = self.shape[-3:-1]
        return DOUBLING * (1 + math.log2(channels)), max(0.05, PIXEL * height)

    @property
    def half_height(self) -> float:
        """Half of the height of all copies together, in inches."""
        if self.name == "image":
            return PIXEL * self.shape[1] / 2
        height = self.size[1]
        back = 0 if self.is_vector else DEPTH * height
        return (self.copies * (height + MARGIN) - MARGIN + back) / 2


@torch.no_grad()
def measure_shapes(network: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Send images (N,C,H,W) through a network in evaluation mode and note all shapes, without N.

    Keys: "layer1" is the output of this module, "input of layer1" its first input, and "image" an image. Of a module
    that runs twice, the second time counts.
    """
    shapes = {"image": tuple(images.shape[1:])}

    def note(name: str, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        shapes[f"input of {name}"] = tuple(inputs[0].shape[1:])
        shapes[name] = tuple(output.shape[1:])

    modules = [(name, module) for name, module in network.named_modules() if name]
    hooks = [m.register_forward_hook(lambda _, ins, out, name=name: note(name, ins, out)) for name, m in modules]
    training = network.training
    try:
        network.eval()(images)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return shapes


class Diagram:
    """The blocks of one network, in the order in which they are computed."""

    def __init__(self, network: nn.Module, images: torch.Tensor, title: str = "") -> None:
        """images: (N,C,H,W) float on the network's device; the first one is drawn. title: stands above the diagram."""
        self.shapes = measure_shapes(network, images)
        self.face = images[0].mean(0).cpu().numpy()  # (H,W)
        self.title = title
        self.blocks: dict[str, Block] = {}

    def chain(self, parts: Mapping[str, str], after: str | None = None, lane: int = 0, is_new: bool = False) -> None:
        """Add blocks, each computed from the one before it.

        parts: name of a module (or "image", or "input of" a module) -> how its output is computed. after: name of the
        block that the first one is computed from; None: it is the first of the diagram.
        """
        for name, text in parts.items():
            self._add(name, text, (after,) if after else (), lane, is_new=is_new)
            after = name

    def join(self, name: str, text: str, after: tuple[str, ...], sign: str = "", is_new: bool = False) -> None:
        """Add a block on the main path that is computed from two others. sign: drawn where they meet, such as "+"."""
        self._add(name, text, after, 0, sign, is_new)

    def table(self) -> pd.DataFrame:
        """Return one row per block: title, module, step (how it is computed) and shape."""
        rows = [(self.title, b.name, b.text.replace("\n", " "), b.label) for b in self.blocks.values()]
        return pd.DataFrame(rows, columns=["title", "module", "step", "shape"])

    def _add(
        self, name: str, text: str, after: tuple[str, ...], lane: int, sign: str = "", is_new: bool = False
    ) -> None:
        if name not in self.shapes:
            raise ValueError(f"no module {name!r} ran in the forward pass; the names are those of named_modules()")
        column = 1 + max((self.blocks[other].column for other in after), default=-1)
        self.blocks[name] = Block(name, text, self.shapes[name], column, lane, after, sign, is_new)


def plot_diagrams(*diagrams: Diagram, width: float = 10.0) -> Figure:
    """Draw diagrams below each other on the same scale. width: of the figure in inches."""
    layouts = [_Layout(diagram, width) for diagram in diagrams]
    height = sum(layout.height for layout in layouts) + LEGEND
    fig, ax = plt.subplots(figsize=(width, height), layout="none")
    ax.set(position=(0, 0, 1, 1), xlim=(0, width), ylim=(0, height))  # so the units of the axes are inches
    ax.axis("off")
    top = height
    for layout in layouts:
        layout.draw(ax, top)
        top -= layout.height
    has_new = any(block.is_new for diagram in diagrams for block in diagram.blocks.values())
    legend = LEGEND_TEXT + (NEW_TEXT if has_new else "")
    ax.text(width / 2, MARGIN, legend, ha="center", va="bottom", fontsize=8, color=LINE)
    return fig


class _Layout:
    """Where the parts of one diagram are drawn."""

    def __init__(self, diagram: Diagram, width: float) -> None:
        self.diagram, blocks = diagram, diagram.blocks.values()
        self.columns = 1 + max(block.column for block in blocks)
        shown = diagram.blocks.get("image")
        self.first = PIXEL * shown.shape[1] + 2 * MARGIN if shown else 0.0  # the first column holds the face
        self.pitch = (width - self.first) / (self.columns - bool(shown))
        lanes = range(1 + max(block.lane for block in blocks))
        self.half = [max(block.half_height for block in blocks if block.lane == lane) + MARGIN for lane in lanes]
        self.down, self.height = [], TITLE if diagram.title else MARGIN  # from the top to the middle of each lane
        for half in self.half:
            self.down.append(self.height + TEXT_ABOVE + half)
            self.height = self.down[-1] + half + TEXT_BELOW

    def x(self, column: float) -> float:
        """The middle of a column; 1.5 lies halfway between columns 1 and 2."""
        if not self.first:
            return self.pitch * (column + 0.5)
        if column < 1:
            return self.first / 2 + column * (self.first + self.pitch) / 2
        return self.first + self.pitch * (column - 0.5)

    def draw(self, ax: Axes, top: float) -> None:
        if self.diagram.title:
            ax.text(MARGIN, top - MARGIN, self.diagram.title, va="top", fontsize=10, weight="bold")
        y = [top - down for down in self.down]  # the middle of each lane
        for block in self.diagram.blocks.values():
            self.draw_arrows(ax, block, y)
            self.draw_block(ax, block, y[block.lane])

    def draw_block(self, ax: Axes, block: Block, y: float) -> None:
        x, half = self.x(block.column), self.half[block.lane]
        ax.text(x, y + half, block.text, ha="center", va="baseline", fontsize=8, linespacing=1.0)
        ax.text(x, y - half, block.label, ha="center", va="top", fontsize=8, weight="bold")
        if block.name == "image":
            side = PIXEL * block.shape[1] / 2
            ax.imshow(self.diagram.face, cmap="gray", extent=(x - side, x + side, y - side, y + side), aspect="auto")
            return
        step = block.size[1] + MARGIN
        for copy in range(block.copies):
            _draw_solid(ax, block, x, y + step * (copy - (block.copies - 1) / 2))

    def draw_arrows(self, ax: Axes, block: Block, y: list[float]) -> None:
        """Arrows from the blocks that this one is computed from. Where two meet, they meet halfway before it."""
        end, meet = self.x(block.column) - self.reach(block), self.x(block.column - 0.5)
        height = y[block.lane]
        if block.sign:
            ax.text(meet, height, block.sign, ha="center", va="center", fontsize=10, zorder=3,
                    bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": LINE})  # fmt: skip
        for name in block.after:
            other = self.diagram.blocks[name]
            turn = meet if len(block.after) > 1 else self.x(other.column + 0.5)
            start = (self.x(other.column) + self.reach(other), y[other.lane])
            _draw_arrow(ax, [start, (turn, y[other.lane]), (turn, height), (end, height)])

    def reach(self, block: Block) -> float:
        """From the middle of a block to the ends of its arrows."""
        breadth = PIXEL * block.shape[1] if block.name == "image" else block.size[0]
        return breadth / 2 + 0.06


def _draw_solid(ax: Axes, block: Block, x: float, y: float) -> None:
    """A block in oblique projection around (x, y): its front, its top and its right side; a vector is flat."""
    breadth, height = block.size
    back = 0.0 if block.is_vector else DEPTH * height
    left, right, low, high = x - breadth / 2, x + breadth / 2, y - (height + back) / 2, y + (height - back) / 2
    color = NEW if block.is_new else VECTOR if block.is_vector else MAP
    look = {"edgecolor": LINE, "linewidth": 0.8, "zorder": 2}
    ax.fill([left, right, right, left], [low, low, high, high], facecolor=color, **look)
    if back:
        ax.fill([left, left + back, right + back, right], [high, high + back, high + back, high],
                facecolor=_lighten(color, 0.5), **look)  # fmt: skip
        ax.fill([right, right + back, right + back, right], [low, low + back, high + back, high],
                facecolor=_lighten(color, 0.25), **look)  # fmt: skip


def _draw_arrow(ax: Axes, corners: list[tuple[float, float]]) -> None:
    """An arrow along corners (x, y)."""
    look = {"arrowstyle": "-|>", "mutation_scale": 8, "color": LINE, "linewidth": 1, "zorder": 1}
    ax.add_patch(FancyArrowPatch(path=Path(list(dict.fromkeys(corners))), joinstyle="miter", **look))


def _lighten(color: str, share: float) -> tuple[float, ...]:
    """Mix a color with white."""
    return tuple(part + share * (1 - part) for part in to_rgb(color))
