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
# # Train
#
# Quantization-aware training: prepare, train, convert. Runs as it is, on the small model and the generated videos that
# ship with the package, in a few minutes on two CPU cores. For a model of yours, change `model`, `images` and
# `evaluation_videos`.

# %%
import os
from pathlib import Path

from qsam2_ao import convert_qsam2, load_embedded, prepare_qsam2, save_qsam2
from qsam2_ao.data.procedural import generate_split
from qsam2_ao.evaluation import evaluate_video
from qsam2_ao.training.qat import Rates, train_qat

QUICK = bool(os.environ.get("QSAM2_QUICK"))  # smaller budgets, to see that everything runs
IMAGES, STEPS, VIDEOS, FRAMES = (1, 1, 1, 3) if QUICK else (50, 60, 8, 8)
OUTPUT = Path("outputs/tutorial")


# %%
def evaluation_videos():
    # qsam2_ao.data.datasets.open_dataset("DAVIS") opens data sets of yours.
    return generate_split("test", VIDEOS, num_frames=FRAMES)


model = load_embedded()
images = [sequence.frames[0] for sequence in generate_split("train", IMAGES, num_frames=1)]
scores = {"float": evaluate_video(model, evaluation_videos()).jf}

# %% [markdown]
# ## Prepare
#
# `prepare_qsam2` calibrates the weights (VRC) and returns the same SAM2 class with fake-quantizers in it, whose
# clipping ranges are parameters (LSC). The model that you gave is not changed.

# %%
prepared = prepare_qsam2(model, "w2a8", calibration_data=images, progress=False)
scores["w2a8, prepared"] = evaluate_video(prepared, evaluation_videos()).jf

# %% [markdown]
# What VRC did, layer by layer: the error of the quantized output before and after, relative to the output.

# %%
for layer in prepared.qsam2_info["vrc"]["layers"][:5]:
    before, after = layer["quantized_error_before"], layer["quantized_error_after"]
    print(f"{layer['layer']}: {before:.3f} -> {after:.3f}")

# %% [markdown]
# ## Train
#
# A prepared model trains in any loop: SAM2's own trainer, yours, or this one. With `partwise` each part of
# SAM2 learns to answer as its float twin does to the same inputs; labels serve as prompts alone. Clipping ranges, which
# are few and learned as logarithms, may move faster than weights.

# %%
result = train_qat(prepared, steps=STEPS, lr=Rates(1e-3, ranges=10), distill_from=model, partwise=True, progress=False)
print(f"loss: {result.losses[0]:.2f} in the first step, {result.losses[-1]:.2f} in the last")

# %% [markdown]
# ## Convert
#
# The packed codes and ranges are those that the training ended with. Nothing is estimated again, so the score of the
# packed model is that of the trained one.

# %%
quantized = convert_qsam2(prepared)
scores["w2a8, trained"] = evaluate_video(quantized, evaluation_videos()).jf
for name, score in scores.items():
    print(f"J&F {score:5.1f}  {name}")

# %%
save_qsam2(quantized, OUTPUT / "w2a8.safetensors")
print(f"wrote {OUTPUT / 'w2a8.safetensors'}")

# %% [markdown]
# Next: [deploy](deploy.py) this file.
