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
# # Quantize and look
#
# Post-training quantization of a SAM2, without training, and what it does to the masks. Runs as it is, on the small
# model and the generated videos that ship with the package, in about two minutes on two CPU cores.

# %%
import os
from pathlib import Path

import rich

from qsam2_ao import convert_qsam2, coverage_report, load_embedded, save_qsam2
from qsam2_ao.data.procedural import generate_sequence, generate_split
from qsam2_ao.evaluation import evaluate_video, track_sequence
from qsam2_ao.predictors import as_video_predictor, eval_mode
from qsam2_ao.reporting.overlay import draw_masks, save_picture, side_by_side
from qsam2_ao.reporting.size import file_size, human_bytes

QUICK = bool(os.environ.get("QSAM2_QUICK"))  # smaller budgets, to see that everything runs
IMAGES, VIDEOS, FRAMES = (1, 1, 3) if QUICK else (50, 8, 8)
OUTPUT = Path("outputs/tutorial")

# %% [markdown]
# ## A model and some images
#
# For a model of yours, take `build_official("sam2.1-t", "sam2.1_hiera_tiny.pt")`, or what `sam2.build_sam` gives you.
# Calibration images need no labels. A folder's name does as well, or any iterable of PIL images, uint8 arrays
# `[H, W, 3]` or tensors `[3, H, W]`; 50 that look like what the model will see are enough.

# %%
model = load_embedded()
images = [sequence.frames[0] for sequence in generate_split("train", IMAGES, num_frames=1)]


# %% [markdown]
# ## Quantize
#
# One call. At 8 bits that is all there is to do. At 2 bits, rounding matters: GPTQ makes up for the error of each
# weight in the weights that follow.

# %%
models = {
    "float": model,
    "w8a8": convert_qsam2(model, "w8a8", calibration_data=images, progress=False),
    "w2a8": convert_qsam2(model, "w2a8", calibration_data=images, progress=False),
    "w2a8, GPTQ": convert_qsam2(model, "w2a8", calibration_data=images, rounding="gptq", progress=False),
}

# %% [markdown]
# ## Measure
#
# J&F is the mean of region overlap and contour accuracy of masks that are tracked through videos.

# %%
for name, candidate in models.items():
    scores = evaluate_video(candidate, generate_split("test", VIDEOS, num_frames=FRAMES))
    print(f"J&F {scores.jf:5.1f}  {name}")

# %% [markdown]
# ## Look
#
# The last frame of a video whose first frame's masks were given.

# %%
video = generate_sequence("test", 0, num_frames=FRAMES)
pictures = [draw_masks(video.frames[-1], video.masks[-1])]
for candidate in models.values():
    predictor = as_video_predictor(candidate)
    with eval_mode(predictor):
        pictures.append(draw_masks(video.frames[-1], track_sequence(predictor, video)[-1]))
sheet = side_by_side(pictures, ["truth", *models])
print(f"wrote {save_picture(sheet, OUTPUT / 'masks.png')}")
sheet

# %% [markdown]
# ## What became of every layer
#
# Nothing stays in float without a word: the report has a reason for each layer.

# %%
report = coverage_report(models["w2a8, GPTQ"])
rich.print(f"{100 * report.quantized_share:.1f}% of the parameters are quantized; in float are:")
for layer in report.layers:
    if layer.target == "float":
        rich.print(f"  {layer.name}: {layer.reason}")

# %% [markdown]
# ## Save
#
# One file, for `load_qsam2` and the `qsam2` command.

# %%
path = OUTPUT / "w8a8.safetensors"
save_qsam2(models["w8a8"], path)
print(f"wrote {path}: {human_bytes(file_size(path))}")

# %% [markdown]
# Next: [train](train.py), to get 2 bits closer to float, or [choose bits layer by layer](choose_bits.py).
