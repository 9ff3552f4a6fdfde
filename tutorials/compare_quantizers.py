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
# # Compare quantizers
#
# The same model, layers, bits, batches and steps, with different quantizers. It takes some minutes on two CPU cores
# and gives a first impression. `qsam2 benchmark accuracy` does it properly, with a learning rate searched for each
# method and three seeds.

# %%
import os

from qsam2_ao import convert_qsam2, prepare_qsam2
from qsam2_ao.benchmark.accuracy.methods import METHODS, parse_setting
from qsam2_ao.benchmark.accuracy.models import build_model
from qsam2_ao.data.procedural import generate_split
from qsam2_ao.evaluation import evaluate_video
from qsam2_ao.training.qat import train_qat

QUICK = bool(os.environ.get("QSAM2_QUICK"))  # smaller budgets, to see that everything runs
IMAGES, STEPS, VIDEOS, FRAMES = (1, 1, 1, 3) if QUICK else (16, 30, 8, 8)
NAMES = ["LSQ", "VRC+LSC"] if QUICK else ["MinMax-EMA", "LSQ", "LSC", "VRC+LSC", "QSAM2"]

# %% [markdown]
# ## The model
#
# The small model that ships with the package has no outliers. SAM2's encoder does, and they are what makes few bits
# hard. So some channels are divided by a factor, and what reads them is multiplied by it: the float outputs stay.

# %%
model = build_model("heavy-tailed")
images = [sequence.frames[0] for sequence in generate_split("train", IMAGES, num_frames=1)]
setting = parse_setting("W2A8")

# %% [markdown]
# ## The methods
#
# A method is a QConfig and how the weights are started. Any torch.ao `QConfig` can take part: `prepare_qsam2` takes it
# as it is.

# %%
scores = {"float": evaluate_video(model, generate_split("test", VIDEOS, num_frames=FRAMES)).jf}
for name in NAMES:
    method = METHODS[name]
    prepared = prepare_qsam2(
        model,
        method.recipe(setting),
        calibration_data=images,
        vrc=method.vrc,
        rounding=method.rounding,
        progress=False,
    )
    teacher = model if method.distill else None
    train_qat(prepared, steps=STEPS, distill_from=teacher, distill=method.distill, progress=False)
    scores[name] = evaluate_video(convert_qsam2(prepared), generate_split("test", VIDEOS, num_frames=FRAMES)).jf
    print(f"J&F {scores[name]:5.1f}  {name}")

# %% [markdown]
# ## Read it with care
#
# One seed, few videos, and one learning rate for all methods. The [benchmarks](../docs/benchmarks.md) have the spread
# over seeds and the interval over videos.

# %%
best = max(NAMES, key=lambda name: scores[name])
print(f"float: J&F {scores['float']:.1f}; the best here: {best}")
