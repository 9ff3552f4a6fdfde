"""What a program around the exported networks has to know: ``settings.json`` beside them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

from sam2.modeling.sam2_base import SAM2Base

from ..errors import CheckpointError, DataError
from ..files import atomic_write
from ..stage import stage_of

FILE = "settings.json"
SIZE_KEY = "qsam2_image_size"
"""In the metadata of a compiled package: the side of its input, in pixels."""
LARGEST = 8192
"""Of the sides that are believed, in pixels; SAM2's is 1024."""


@dataclass(frozen=True)
class ExportSettings:
    """Of one export.

    Attributes:
        runtime: "aoti", "onnx" or "openvino".
        kernels: Whether the files call this package's int8 kernels.
        image_size: Side of the square input in pixels.
        num_maskmem: Frames that memory attention sees, the prompted one included.
        max_obj_ptrs_in_encoder: Frames whose object pointers it sees, the prompted one not included.
        memory_temporal_stride_for_eval: Frames between remembered ones.
        multimask_output_in_sam: Whether one click gives three masks, of which the best is taken.
        multimask_output_for_tracking: Whether that holds after the first frame, too.
        multimask_min_pt_num: Fewest clicks for it.
        multimask_max_pt_num: Most clicks for it.
        binarize_mask_from_pts_for_mem_enc: Whether a mask from prompts enters the memory by its sign alone.
        pred_obj_scores: Whether an object with a negative score has no mask.
        mask_prompts: Whether the decoder reads masks, which those of older exports don't.
        use_mask_input_as_output_without_sam: Whether a given mask is an object's mask as it stands, in tracking.
        add_all_frames_to_correct_as_cond: Whether corrected frames are looked back to like those of first prompts.
        images_only: Whether its memory was never given weights, so that it segments images but cannot track.
    """

    runtime: str
    kernels: bool
    image_size: int
    num_maskmem: int
    max_obj_ptrs_in_encoder: int
    memory_temporal_stride_for_eval: int
    multimask_output_in_sam: bool
    multimask_output_for_tracking: bool
    multimask_min_pt_num: int
    multimask_max_pt_num: int
    binarize_mask_from_pts_for_mem_enc: bool
    pred_obj_scores: bool
    mask_prompts: bool = False
    use_mask_input_as_output_without_sam: bool = True
    add_all_frames_to_correct_as_cond: bool = False
    images_only: bool = False

    @classmethod
    def of(cls, model: SAM2Base, runtime: str, kernels: bool = False) -> ExportSettings:
        """Those of a model, under the names that ``SAM2Base`` has for them."""
        own = ("runtime", "kernels", "mask_prompts", "images_only")
        # The last of them is an attribute of SAM2's video predictor alone.
        found = {f.name: getattr(model, f.name, False) for f in fields(cls) if f.name not in own}
        return cls(runtime, kernels, mask_prompts=True, images_only=stage_of(model).images_only, **found)

    def check_mask_prompts(self, what: str) -> None:
        """Refuse what needs a decoder that reads masks, if that of the files doesn't.

        Args:
            what: The prompt, for the error.

        Raises:
            DataError: It doesn't.
        """
        if not self.mask_prompts:
            raise DataError(
                f"{what}, and these files read clicks and boxes only: they were written by an older version; export "
                "the model again"
            )

    def _check(self) -> None:
        for field, kind in get_type_hints(type(self)).items():
            value = getattr(self, field)
            if type(value) is not kind or (kind is int and value < 0):
                raise ValueError(f"{field} is {value!r:.60}, not {'a count' if kind is int else f'a {kind.__name__}'}")
        if not 0 < self.image_size <= LARGEST or self.image_size % 16:
            raise ValueError(f"image_size is {self.image_size}, not a multiple of 16 up to {LARGEST}")

    def save(self, folder: Path) -> Path:
        """Write them into a folder of exported files."""
        path = folder / FILE
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @staticmethod
    def remove(folder: Path) -> None:
        """Take those of an earlier export away before the first file of another replaces one: they are written last."""
        with suppress(OSError):  # writing there says why not
            (folder / FILE).unlink()

    @classmethod
    def load(cls, folder: Path) -> ExportSettings:
        """Read them.

        Raises:
            CheckpointError: The folder holds no export, or one of another version.
        """
        path = folder / FILE
        try:
            settings = cls(**json.loads(path.read_text()))
            settings._check()
            return settings
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} is no folder that qsam2 export wrote: it has no {FILE}") from error
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged or of another version ({error}): export again") from error
