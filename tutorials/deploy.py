# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Deploy
#
# What can be done with a packed file: everything that SAM2 does. Run [train](train.py) first, name a file of yours in
# the environment variable `QSAM2_FILE`, or let this tutorial make one.

# %%
import os
from pathlib import Path

import numpy as np
import torch

import qsam2_ao  # before sam2's predictors: it makes them importable where torchvision's operators don't load

# isort: split
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao.checkpoint import read_header
from qsam2_ao.data.procedural import generate_sequence, generate_split
from qsam2_ao.predictors import predictor_state
from qsam2_ao.reporting.overlay import draw_masks, save_picture, side_by_side
from qsam2_ao.reporting.size import human_bytes, model_size

QUICK = bool(os.environ.get("QSAM2_QUICK"))  # smaller budgets, to see that everything runs
FRAMES, SIDE = (2, 2) if QUICK else (8, 8)
OUTPUT = Path("outputs/tutorial")
FILE = Path(os.environ.get("QSAM2_FILE", OUTPUT / "w2a8.safetensors"))

if not FILE.exists():
    images = [sequence.frames[0] for sequence in generate_split("train", 1 if QUICK else 50, num_frames=1)]
    packed = qsam2_ao.convert_qsam2(
        qsam2_ao.load_embedded(), "w2a8", calibration_data=images, rounding="gptq", progress=False
    )
    qsam2_ao.save_qsam2(packed, FILE)

# %% [markdown]
# ## The file
#
# What it says about itself, without reading its tensors.

# %%
header = read_header(FILE)
print(f"{FILE}: recipe {header.info['qconfig']}, {len(header.plan)} quantized layers")

# %% [markdown]
# Loading never makes the float weights: they stay packed, and each layer unpacks its own when it runs.

# %%
size = model_size(qsam2_ao.load_qsam2(FILE))
print(f"{human_bytes(size.actual_bytes)} of tensors; in bfloat16 it would be {human_bytes(size.bfloat16_bytes)}")

# %% [markdown]
# ## The target
#
# `target="auto"` takes the int8 kernels on machines that have them. The default, `"packed"`, runs on any device and
# computes what was trained to the bit. `device="cuda"` puts the model on a GPU.

# %%
model = qsam2_ao.load_qsam2(FILE, model_class=SAM2VideoPredictor, target="auto")
targets = [layer.target for layer in qsam2_ao.coverage_report(model).layers]
print({target: targets.count(target) for target in sorted(set(targets))})

# %% [markdown]
# ## Images, with a box
#
# Coordinates are pixels of the picture.

# %%
sequence = generate_sequence("test", 0, num_frames=FRAMES)
frame, prompt = sequence.frames[0], sequence.prompts[1]
predictor = SAM2ImagePredictor(model)
predictor.set_image(frame)
masks, scores, _ = predictor.predict(box=prompt.box, multimask_output=False)
print(f"box: predicted IoU {scores[0]:.2f}, {int(masks[0].sum())} pixels of {int(prompt.mask.sum())}")

# %% [markdown]
# ## Images, without a prompt

# %%
# The thresholds are lower than SAM2's: the small model is less sure of its masks.
generator = SAM2AutomaticMaskGenerator(model, points_per_side=SIDE, pred_iou_thresh=0.5, stability_score_thresh=0.5)
found = generator.generate(frame)
print(f"mask generator: {len(found)} masks")

# %% [markdown]
# ## Videos
#
# From a folder of JPEG files, `predictor.init_state("frames/")` is SAM2's own way. `predictor_state` takes frames in
# memory.

# %%
state = predictor_state(model, sequence.frames)
for object_id, given in sequence.prompts.items():
    model.add_new_mask(state, 0, object_id, given.mask)
tracked = {}
for index, object_ids, logits in model.propagate_in_video(state):
    tracked[index] = {i: mask.cpu().numpy() for i, mask in zip(object_ids, logits[:, 0] > 0, strict=True)}

# %% [markdown]
# ## Half precision
#
# The packed layers follow autocast.

# %%
with torch.autocast(model.device.type, dtype=torch.bfloat16):
    predictor.set_image(frame)
    half, _, _ = predictor.predict(box=prompt.box, multimask_output=False)
print(f"bfloat16: {100 * np.mean(half == masks):.1f}% of the pixels are the same")

# %%
last = max(tracked)
pictures = [draw_masks(sequence.frames[i], tracked[i]) for i in (0, last)]
pictures.append(draw_masks(frame, {i: m["segmentation"] for i, m in enumerate(found, start=1)}))
sheet = side_by_side(pictures, ["tracked, first frame", f"tracked, frame {last}", "mask generator"])
print(f"wrote {save_picture(sheet, OUTPUT / 'deployed.png')}")
sheet

# %% [markdown]
# Other runtimes: `qsam2 export` writes [ONNX, OpenVINO and AOTInductor files](../docs/how-to/deploy-onnx-openvino.md).
