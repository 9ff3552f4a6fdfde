"""J&F by video is what ``qsam2 evaluate`` finds, and the page says how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import pytest
from sam2.modeling.sam2_base import SAM2Base

from qsam2_ao.data.annotation import Annotation
from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.data.types import VideoSequence
from qsam2_ao.errors import DataError
from qsam2_ao.evaluation.protocol import Protocol
from qsam2_ao.evaluation.video import evaluate_video
from qsam2_ao.html_report.page import Table, Text
from qsam2_ao.html_report.videos import video_section


@pytest.mark.parametrize("protocol", get_args(Protocol))
def test_the_scores_are_those_of_the_protocol_over_all_objects(reference: SAM2Base, protocol: Protocol):
    videos = [generate_sequence("test", i, num_frames=4) for i in (0, 2)]
    assert len(videos[0].object_ids) != len(videos[1].object_ids), "or means over videos would be the same"
    blocks = video_section({"float": reference}, videos, protocol=protocol, metric="davis", progress=False).blocks
    found = evaluate_video(reference, videos, protocol=protocol, metric="davis")
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert table.headings[0] == f"all {len(found.scores.objects)} objects"
    assert table.rows == [["float", f"{found.jf:.1f}", f"{found.j:.1f}", f"{found.f:.1f}"]]
    (text,) = (block.text for block in blocks if isinstance(block, Text))
    assert text.startswith("2 videos, ")
    assert f"Protocol {protocol}: " in text
    assert "metric davis: " in text


class Renumbered:
    """A video whose objects have other ids, and may overlap."""

    overlapping = True

    def __init__(self, video: VideoSequence, ids: Mapping[int, int]) -> None:
        self._video, self._ids = video, ids
        self.name, self.frames, self.frame_names, self.annotated = (
            video.name,
            video.frames,
            video.frame_names,
            video.annotated,
        )
        self.object_ids = tuple(ids.values())

    def annotation(self, t: int) -> Annotation | None:
        known = self._video.annotation(t)
        return known and Annotation(known.size, {self._ids[i]: mask for i, mask in known.masks.items()})


def test_objects_may_have_any_ids(reference: SAM2Base):
    """SA-V counts from 0, LVOS goes past 255; what is drawn and scored is the same."""
    video = generate_sequence("test", 0, num_frames=4)
    pages = [
        video_section({"float": reference}, [Renumbered(video, dict(zip(video.object_ids, ids, strict=False)))]).blocks
        for ids in ((0, 256, 300, 301, 302), (1, 2, 3, 4, 5))
    ]
    assert pages[0] == pages[1]


def test_an_unknown_way_is_refused(reference: SAM2Base):
    videos = [generate_sequence("test", 0, num_frames=3)]
    for way in ({"protocol": "other"}, {"metric": "other"}):
        with pytest.raises(DataError, match="must be one of"):
            video_section({"float": reference}, videos, **way, progress=False)


def test_a_video_that_cannot_be_scored_is_named(reference: SAM2Base):
    video = generate_sequence("test", 0, num_frames=4)
    video.masks[0][:] = 0  # so that no object counts as DAVIS counts them
    with pytest.raises(DataError, match=r"test-00000.* metric davis"):
        video_section({"float": reference}, [video], metric="davis", progress=False)
