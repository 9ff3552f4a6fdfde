"""Opening a video, and decoding it from its middle, to the frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from ..optional import needed

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def open_video(path: str | os.PathLike[str]) -> InputContainer:
    """Open a video file by PyAV, whatever the encoding of its title and other metadata.

    Args:
        path: The file.

    Returns:
        The container, to be closed by ``with``.

    Raises:
        MissingPackageError: PyAV is not installed.
        av.error.FFmpegError: It is no such file, or none that FFmpeg reads.
    """
    av = needed("av")
    # From version 19 on it has no such option, and such text is no error.
    before = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    return av.open(os.path.abspath(path), **before)  # what stands before a colon would be a protocol


def presentation_times(container: InputContainer, stream: VideoStream) -> tuple[list[int], list[int]] | None:
    """When the frames of a stream are shown, without decoding it.

    Args:
        container: An open PyAV container.
        stream: Its video stream.

    Returns:
        The time of each frame, and those of key frames, in the stream's time base, ascending; None if the file does
        not say, or says the same of two frames. What FFmpeg says of an AVI is the order in which frames are decoded.
    """
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return None
    times, keys = [], []
    for packet in container.demux(stream):
        if packet.size == 0:  # the one that flushes the decoder
            continue
        if packet.pts is None:
            return None
        if packet.is_discard:  # cut away by the file's edit list: decoded, but not shown
            continue
        times.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
    return (sorted(times), sorted(keys)) if times and len(set(times)) == len(times) else None


def decode_from(
    container: InputContainer, stream: VideoStream, start: int, damaged: Callable[[], object] = lambda: None
) -> Iterator[VideoFrame]:
    """The frames of a stream from number ``start`` on.

    Args:
        container: A newly opened PyAV container.
        stream: Its video stream.
        start: How many frames to leave out. Those between it and the key frame before it are decoded and dropped.
        damaged: Called where FFmpeg says that what it reads or decodes is damaged.

    Yields:
        PyAV frames.
    """
    if start == 0:
        yield from _decode(container.demux(stream), damaged)
        return
    found = presentation_times(container, stream)
    if found is not None:
        times, keys = found
        if start >= len(times):
            return
        key = max((time for time in keys if time <= times[start]), default=times[0])
        container.seek(key, stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        if first.is_keyframe and first.pts == key:  # some containers (MPEG-TS) land elsewhere
            frames = _decode(chain((first,), packets), damaged)
            yield from (frame for frame in frames if frame.pts is None or frame.pts >= times[start])
            return
    with open_video(container.name) as again:
        from_start = again.streams.video[0]
        from_start.thread_type = "AUTO"
        yield from islice(_decode(again.demux(from_start), damaged), start, None)


def _decode(packets: Iterable[Packet], damaged: Callable[[], object]) -> Iterator[VideoFrame]:
    for packet in packets:
        if packet.is_corrupt:
            damaged()
        for frame in packet.decode():
            if frame.is_corrupt:
                damaged()
            yield frame


def count_packets(container: InputContainer, stream: VideoStream) -> int:
    """How many frames a stream has, by its packets, without decoding them."""
    return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
