"""How messages say numbers of things, and what is said of a name that nothing has: which may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def counted(count: int, noun: str) -> str:
    """So many of something, for people to read.

    Args:
        count: How many.
        noun: In the singular; its plural ends in "s".

    Example:
        >>> counted(1, "video"), counted(0, "video")
        ('1 video', '0 videos')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def unknown_name(kind: str, name: object, known: Collection[str]) -> str:
    """A message about a name that is not there.

    Args:
        kind: What it should name, in the singular.
        name: What was given.
        known: All that there are.

    Example:
        >>> unknown_name("region", "mask_decodr", ["image_encoder", "mask_decoder"])
        "unknown region 'mask_decodr'; the regions are image_encoder, mask_decoder; did you mean 'mask_decoder'?"
    """
    return f"unknown {kind} {name!r}; the {kind}s are {', '.join(known)}{did_you_mean(name, known)}"


def resembling(name: object, known: Collection[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names that one resembles, most alike first.

    Names that begin or end otherwise, as without the prefix of a region or with one of a wrapper, stand for all others.

    Args:
        name: What was given.
        known: All that there are.
        count: At most so many.
        cutoff: How alike they must be, 0 to 1, as for ``difflib.get_close_matches``.

    Example:
        >>> resembling("cdua", ["cpu", "cuda"])
        ['cuda']
    """
    text = str(name)
    close = [other for other in known if f".{other}".endswith(f".{text}") or f".{text}".endswith(f".{other}")]
    return (close or difflib.get_close_matches(text, known, count, cutoff))[:count]


def did_you_mean(name: object, known: Collection[str]) -> str:
    """The names that one resembles, as the end of a message; empty where it resembles none.

    Example:
        >>> did_you_mean("trunk.blocks.0.mlp", ["image_encoder.trunk.blocks.0.mlp", "memory_encoder"])
        "; did you mean 'image_encoder.trunk.blocks.0.mlp'?"
    """
    close = resembling(name, known)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
