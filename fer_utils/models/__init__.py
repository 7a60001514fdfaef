"""The networks, one module per architecture. `build_model` builds a network from its spec or name."""

from fer_utils.models.build import ARCHITECTURES, build_model, describe, make_spec

__all__ = ["ARCHITECTURES", "build_model", "describe", "make_spec"]
