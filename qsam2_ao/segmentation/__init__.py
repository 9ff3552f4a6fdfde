"""Segmenting images and tracking objects through videos, from clicks, boxes and masks to files.

Example:
    >>> from qsam2_ao.segmentation import parse_prompts, segment_image
    >>> logits, scores = segment_image(model, picture, parse_prompts(picture.size, ["50,37"]))
"""

from ..reporting.label_maps import label_map, save_label_map
from .image import ObjectFound, SegmentedImage, segment_file, segment_image
from .prompts import ObjectPrompt, parse_prompts, parse_schedule
from .saving import SavedAs
from .streaming import FrameMasks, StreamingPredictor
from .video import TrackedVideo, track_file, track_frames

__all__ = [
    "FrameMasks",
    "ObjectFound",
    "ObjectPrompt",
    "SavedAs",
    "SegmentedImage",
    "StreamingPredictor",
    "TrackedVideo",
    "label_map",
    "parse_prompts",
    "parse_schedule",
    "save_label_map",
    "segment_file",
    "segment_image",
    "track_file",
    "track_frames",
]
