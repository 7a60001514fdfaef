"""A small vision transformer for gray images of 48x48 pixels."""

import torch
from torch import nn


class TransformerBlock(nn.Module):
    """Self-attention over all tokens and a two-layer perceptron for each, both behind a layer norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """width: of a token. heads: of the attention. hidden: width of the perceptron's middle layer."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens (N,T,width) to tokens of the same shape."""
        tokens = tokens + self.attend(self.norm1(tokens))
        return tokens + self.perceptron(self.norm2(tokens))

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Replace each token by a mixture of all tokens, with weights softmax(q k / sqrt(d))."""
        n, count, width = tokens.shape
        split = self.queries_keys_values(tokens).view(n, count, 3, self.heads, -1)  # (N,T,3,H,d)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # (N,H,T,d) each
        scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5  # (N,H,T,T)
        mixed = scores.softmax(-1) @ values  # (N,H,T,d)
        return self.project(mixed.transpose(1, 2).reshape(n, count, width))


class SmallViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) for 64 patches of 6x6 pixels, about 0.02 GMACs.

    The head takes the mean of all tokens, so there is no class token.
    """

    def __init__(self, num_classes: int = 7, width: int = 72, depth: int = 6, heads: int = 4) -> None:
        """width: of a token. depth: number of blocks. heads: of the attention; they must divide width."""
        super().__init__()
        self.patches = nn.Conv2d(1, width, 6, stride=6)  # (N,1,48,48) -> (N,width,8,8)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, 2 * width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.1), nn.Linear(width, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N,1,48,48) float to logits (N,num_classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (N,64,width)
        tokens = self.blocks(tokens + self.positions)  # (N,64,width)
        return self.head(tokens.mean(1))  # (N,num_classes)
