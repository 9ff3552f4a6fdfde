"""What is deployed: weights as exactly packed integer codes, and the arithmetic-free packing underneath."""

from .packed import PackedIntxTensor

__all__ = ["PackedIntxTensor"]
