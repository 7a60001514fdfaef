"""Helpers for a notebook course on facial expression recognition with FER2013.

`from fer_utils import predict_faces` finds the faces of photos and predicts their emotions.
"""

import importlib


def __getattr__(name: str) -> object:
    """Load predict_faces when it is first asked for, because PyTorch takes seconds to import."""
    if name == "predict_faces":
        return importlib.import_module("fer_utils.faces").predict_faces
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
