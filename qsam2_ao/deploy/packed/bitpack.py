"""Packing of unsigned 2- to 8-bit codes into bytes: exactly ``bits`` bits each, the same on every machine.

The ``n`` codes, in row-major order, are padded with zeros to ``8 * m``, ``m = ceil(n / 8)``. Each code is cut
into fields whose widths are the powers of two in ``bits``, low bits first, and each field goes to a plane of
its own::

    bits   fields of a code, low bits first         planes, one after the other   bytes
    2      [1 0]                                    2                             2 m
    3      [1 0] [2]                                2, 1                          3 m
    4      [3 2 1 0]                                4                             4 m
    5      [3 2 1 0] [4]                            4, 1                          5 m
    6      [3 2 1 0] [5 4]                          4, 2                          6 m
    7      [3 2 1 0] [5 4] [6]                      4, 2, 1                       7 m
    8      [7 6 5 4 3 2 1 0]                        8                             8 m

A plane of width ``w`` is ``w * m`` bytes of ``8 / w`` lanes, and the codes run along the lanes: lane ``i``
(bits ``i * w`` and up) of byte ``j`` belongs to code ``i * (w * m) + j``. For 3 bits and ``m = 1``, codes
``a`` to ``h``, ``a0`` the lowest bit of ``a``::

                bit 7    6    5    4    3    2    1    0
    byte 0         g1   g0   e1   e0   c1   c0   a1   a0     plane of width 2
    byte 1         h1   h0   f1   f0   d1   d0   b1   b0
    byte 2         h2   g2   f2   e2   d2   c2   b2   a2     plane of width 1

Neighbouring codes lie in neighbouring bytes, so that unpacking is a few shifts and masks over contiguous
memory. All arithmetic is on uint8, so that neither byte order nor instruction set enters the layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UnsupportedLayerError

MIN_BITS, MAX_BITS = 2, 8


def check_bits(bits: int) -> None:
    """Refuse a bit width that cannot be packed.

    Args:
        bits: Bits per code.

    Raises:
        UnsupportedLayerError: ``bits`` is not an integer from 2 to 8.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise UnsupportedLayerError(f"bits must be an integer from {MIN_BITS} to {MAX_BITS}, not {bits!r}")


def packed_size(n: int, bits: int) -> int:
    """The number of bytes that ``n`` codes take: ``ceil(n / 8) * bits``."""
    return -(-n // 8) * bits


def _plane_widths(bits: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if bits & width]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes into bytes.

    Args:
        codes: Integers in ``0 .. 2**bits - 1``, any shape and integer dtype; read in row-major order.
        bits: Bits per code, 2 to 8.

    Returns:
        uint8 ``[packed_size(codes.numel(), bits)]`` on the same device.

    Raises:
        UnsupportedLayerError: ``bits`` is out of range, or ``codes`` are not integers in range (values are
            not looked at inside ``torch.compile`` and on the meta device).

    Example:
        >>> pack(torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]), bits=2).tolist()
        [120, 45]
    """
    check_bits(bits)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise UnsupportedLayerError(f"codes must have an integer dtype, not {codes.dtype}")
    if codes.numel() and codes.device.type != "meta" and not torch.compiler.is_compiling():
        low, high = (int(extreme) for extreme in codes.aminmax())
        if low < 0 or high >= 2**bits:
            raise UnsupportedLayerError(f"codes of {bits} bits run from 0 to {2**bits - 1}, not {low} to {high}")

    octets = -(-codes.numel() // 8)
    flat = codes.reshape(-1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, 8 * octets - codes.numel()))
    planes = []
    for width in _plane_widths(bits):
        lanes = (flat & (2**width - 1)).view(8 // width, width * octets)
        plane = lanes[0]
        for lane in range(1, 8 // width):
            plane = plane | (lanes[lane] << (lane * width))
        planes.append(plane)
        flat = flat >> width
    return torch.cat(planes)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of :func:`pack`.

    Args:
        packed: uint8 ``[packed_size(n, bits)]``.
        bits: Bits per code, 2 to 8.
        n: The number of codes.

    Returns:
        uint8 ``[n]`` on the same device.

    Raises:
        UnsupportedLayerError: ``bits`` is out of range, or ``packed`` has another dtype or size.

    Example:
        >>> unpack(torch.tensor([120, 45], dtype=torch.uint8), bits=2, n=8).tolist()
        [0, 1, 2, 3, 3, 2, 1, 0]
    """
    check_bits(bits)
    octets = -(-n // 8)
    if packed.dtype != torch.uint8 or packed.shape != (bits * octets,):
        raise UnsupportedLayerError(
            f"{n} codes of {bits} bits are packed into uint8 [{bits * octets}], not {packed.dtype} {list(packed.shape)}"
        )
    codes = None
    start = done = 0
    for width in _plane_widths(bits):
        plane = packed[start : start + width * octets]
        if width < 8:
            shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
            plane = ((plane >> shifts[:, None]) & (2**width - 1)).view(-1)
        codes = plane if codes is None else codes | (plane << done)
        start += width * octets
        done += width
    assert codes is not None  # every width has at least one plane
    return codes[:n]
