"""What can be done with a packed file: everything that SAM2 does.

python tutorials/quantize_your_own.py            # writes the file, or use one of yours
python tutorials/deploy_packed.py outputs/tutorial/w2a8.safetensors
"""

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import qsam2_ao  # before sam2's predictors: it makes them importable where torchvision's operators don't load

# isort: split
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao.checkpoint import read_header
from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.predictors import predictor_state
from qsam2_ao.reporting.overlay import draw_masks, save_picture, side_by_side
from qsam2_ao.reporting.size import human_bytes, model_size

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", type=Path, help="a packed file")
parser.add_argument("--output", type=Path, default=Path("outputs/tutorial"), help="where to write pictures")
parser.add_argument("--frames", type=int, default=8, help="frames of the video")
settings = parser.parse_args()

# %% What the file says about itself, without reading its tensors.
header = read_header(settings.file)
print(f"{settings.file}: recipe {header.info['qconfig']}, {len(header.plan)} quantized layers")

# %% Loading never makes the float weights: they stay packed, and each layer unpacks its own when it runs.
size = model_size(qsam2_ao.load_qsam2(settings.file))
print(f"{human_bytes(size.actual_bytes)} of tensors; in bfloat16 it would be {human_bytes(size.bfloat16_bytes)}")

# %% target="auto" takes the int8 kernels on CPUs that have them. The default, "packed", runs on any device and computes
# what was trained to the bit.
model = qsam2_ao.load_qsam2(settings.file, model_class=SAM2VideoPredictor, target="auto")  # device="cuda" puts it there

# %% Images, with a box. Coordinates are pixels of the picture.
sequence = generate_sequence("test", 0, num_frames=settings.frames)
frame, prompt = sequence.frames[0], sequence.prompts[1]
predictor = SAM2ImagePredictor(model)
predictor.set_image(frame)
masks, scores, _ = predictor.predict(box=prompt.box, multimask_output=False)
print(f"box: predicted IoU {scores[0]:.2f}, {int(masks[0].sum())} pixels of {int(prompt.mask.sum())}")

# %% Images, without a prompt.
found = SAM2AutomaticMaskGenerator(model, points_per_side=8, pred_iou_thresh=0.5).generate(frame)
print(f"mask generator: {len(found)} masks")

# %% Videos. From a folder of JPEG files, predictor.init_state("frames/") is SAM2's own way.
state = predictor_state(model, sequence.frames)
for object_id, given in sequence.prompts.items():
    model.add_new_mask(state, 0, object_id, given.mask)
tracked = {}
for index, object_ids, logits in model.propagate_in_video(state):
    tracked[index] = {i: mask.cpu().numpy() for i, mask in zip(object_ids, logits[:, 0] > 0, strict=True)}

# %% Half precision where the hardware likes it: the packed layers follow autocast.
with torch.autocast(model.device.type, dtype=torch.bfloat16):
    predictor.set_image(frame)
    half, _, _ = predictor.predict(box=prompt.box, multimask_output=False)
print(f"bfloat16: {100 * np.mean(half == masks):.1f}% of the pixels are the same")

# %%
last = max(tracked)
pictures = [draw_masks(sequence.frames[i], tracked[i]) for i in (0, last)]
pictures.append(draw_masks(frame, {i: m["segmentation"] for i, m in enumerate(found, start=1)}))
titles = ["tracked, first frame", f"tracked, frame {last}", "mask generator"]
print(f"wrote {save_picture(side_by_side(pictures, titles), settings.output / 'deployed.png')}")
