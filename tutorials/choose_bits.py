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
# # Choose bits per layer
#
# Layers differ in what they lose at few bits. Here each layer of the mask decoder is quantized alone, and the bits are
# chosen that cost least within a size. It takes some minutes on two CPU cores. `qsam2 sensitivity` does the same for a
# whole model, and continues where it stopped.

# %%
import os
from pathlib import Path

from qsam2_ao import convert_qsam2, load_embedded
from qsam2_ao.data.procedural import generate_split
from qsam2_ao.evaluation import evaluate_video
from qsam2_ao.reporting.figures import save_figure
from qsam2_ao.reporting.size import human_bytes, model_size
from qsam2_ao.sensitivity import assign_bits, measure_sensitivity, quantizable_layers
from qsam2_ao.sensitivity.plot import region_figure

QUICK = bool(os.environ.get("QSAM2_QUICK"))  # smaller budgets, to see that everything runs
IMAGES, VIDEOS, FRAMES = (1, 1, 3) if QUICK else (8, 8, 8)
BITS = (2, 4) if QUICK else (2, 3, 4, 8)
OUTPUT = Path("outputs/tutorial")

model = load_embedded()
images = [sequence.frames[0] for sequence in generate_split("train", IMAGES, num_frames=1)]

# %% [markdown]
# ## Measure
#
# The loss is the relative squared error of the outputs of all regions of SAM2 when this one layer is quantized. Leave
# `layers` out to measure all.

# %%
names = [name for name, layer in quantizable_layers(model).items() if layer.region == "mask_decoder"]
names = names[:4] if QUICK else names
sensitivity = measure_sensitivity(model, images, layers=names, bits=BITS, rounding="gptq", progress=False)
for name in sorted(names, key=lambda name: -sensitivity.loss(name, BITS[0]))[:3]:
    print(f"{name}: " + ", ".join(f"{sensitivity.loss(name, bits):.1e} at {bits} bits" for bits in BITS))

# %% [markdown]
# ## Choose
#
# The budget is the size of 4 bits for all. An exact solver finds the bits with the smallest sum of losses. The first
# and last layers have 8 bits unless you say otherwise.

# %%
middle = sum(layer.packed_bytes(4) for layer in sensitivity.layers)
assignment = assign_bits(sensitivity, middle, first_and_last=True)
print(f"bits -> layers: {assignment.counts()}, {human_bytes(assignment.bytes)} of {human_bytes(middle)}")

# %%
figure = region_figure(sensitivity, "mask_decoder", assignment)
print(f"wrote {save_figure(figure, OUTPUT / 'mask_decoder.png')}")
figure

# %% [markdown]
# ## Use them
#
# An assignment is a recipe. `assignment.save("bits.json")` writes it for `qsam2 quantize --bits-file`.

# %%
mixed = convert_qsam2(model, assignment.qconfig(8), calibration_data=images, rounding="gptq", progress=False)
for name, candidate in {"float": model, "mask decoder in mixed bits": mixed}.items():
    score = evaluate_video(candidate, generate_split("test", VIDEOS, num_frames=FRAMES)).jf
    print(f"J&F {score:5.1f}, {human_bytes(model_size(candidate).actual_bytes)}  {name}")

# %% [markdown]
# Next: [compare quantizers](compare_quantizers.py), or [deploy](deploy.py).
