"""Weights as exactly packed integer codes, and the packing of their bits underneath."""

from .tensor import PackedIntxTensor

__all__ = ["PackedIntxTensor"]
