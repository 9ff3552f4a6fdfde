"""Accuracy as users measure it: SAM2's own predictors on videos (J&F) and images (mIoU), and agreement with float."""

from .agreement import Agreement, image_agreement, sqnr
from .image import ImageSample, ImageScores, evaluate_image, image_samples
from .jf import JFScores, ObjectScore, score_folders, score_sequence
from .miou import mask_iou
from .video import VideoScores, evaluate_video, track_sequence

__all__ = [
    "Agreement",
    "ImageSample",
    "ImageScores",
    "JFScores",
    "ObjectScore",
    "VideoScores",
    "evaluate_image",
    "evaluate_video",
    "image_agreement",
    "image_samples",
    "mask_iou",
    "score_folders",
    "score_sequence",
    "sqnr",
    "track_sequence",
]
