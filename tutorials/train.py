"""Quantize a SAM2 of your own: post-training first, then with quantization-aware training.

    python tutorials/quantize_your_own.py

It runs as it is, on the small model and the procedural videos that ship with the package, in a few minutes on two CPU
cores. For a model of yours, change `load_model`, `calibration_images` and `evaluation_videos`; nothing else.
"""

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import rich

from qsam2_ao import convert_qsam2, coverage_report, load_embedded, prepare_qsam2, save_qsam2
from qsam2_ao.data.procedural import generate_split
from qsam2_ao.evaluation import evaluate_video
from qsam2_ao.training.qat import train_qat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("outputs/tutorial"), help="where to write the packed files")
parser.add_argument("--images", type=int, default=50, help="calibration images")
parser.add_argument("--steps", type=int, default=60, help="training steps")
parser.add_argument("--videos", type=int, default=8, help="videos to evaluate on")
settings = parser.parse_args()


# %% Your model and data.
def load_model():
    # An official one: build_official("sam2.1-t", "sam2.1_hiera_tiny.pt"), or what sam2.build_sam gives you.
    return load_embedded()


def calibration_images():
    # A folder's name does as well, or any iterable of PIL images, uint8 arrays [H, W, 3] or tensors [3, H, W]. They
    # need no labels; 50 that look like what the model will see are enough.
    return [sequence.frames[0] for sequence in generate_split("train", settings.images, num_frames=1)]


def evaluation_videos():
    # qsam2_ao.data.davis.read_davis("DAVIS") reads videos of yours in the layout of DAVIS.
    return generate_split("test", settings.videos, num_frames=8)


model = load_model()
images = calibration_images()
scores = {"float": evaluate_video(model, evaluation_videos(), progress=True).jf}

# %% Without training: one call. At 8 bits that is all there is to do.
ptq = convert_qsam2(model, "w8a8", calibration_data=images)
scores["w8a8, no training"] = evaluate_video(ptq, evaluation_videos(), progress=True).jf

# %% At 2 bits it is not.
ptq = convert_qsam2(model, "w2a8", calibration_data=images)
scores["w2a8, no training"] = evaluate_video(ptq, evaluation_videos(), progress=True).jf

# %% So train. `prepare_qsam2` calibrates the weights (VRC) and gives back the same SAM2 class with fake-quantizers in
# it, whose clipping ranges are parameters (LSC). It trains in any loop: SAM2's own trainer, yours, or this one.
prepared = prepare_qsam2(model, "w2a8", calibration_data=images)
train_qat(prepared, steps=settings.steps, distill_from=model)

# %% Converting derives nothing anew: the packed codes are those that the training computed with.
quantized = convert_qsam2(prepared)
scores["w2a8, trained"] = evaluate_video(quantized, evaluation_videos(), progress=True).jf

# %% What became of every layer, and why some stayed in float.
report = coverage_report(quantized)
rich.print(f"{100 * report.quantized_share:.1f}% of the parameters are quantized; in float are:")
for layer in report.layers:
    if layer.target == "float":
        rich.print(f"  {layer.name}: {layer.reason}")

# %% One file, for `load_qsam2` and the qsam2 command.
save_qsam2(quantized, settings.output / "w2a8.safetensors")
for name, score in scores.items():
    print(f"J&F {score:5.1f}  {name}")
print(f"wrote {settings.output / 'w2a8.safetensors'}")
