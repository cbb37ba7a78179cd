"""A small network and a batch for it."""

from support.networks import batch, network

__all__ = ["batch", "network"]
