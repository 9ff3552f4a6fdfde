"""A name that nothing has is an error with those that may have been meant, wherever users write names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch.ao.quantization import QConfigMapping

from qsam2_ao import load_embedded, lsc_qconfig, prepare_qsam2
from qsam2_ao.benchmark.accuracy.plan import quick_plan, select
from qsam2_ao.deploy.targets import get_target
from qsam2_ao.errors import QSAM2Error
from qsam2_ao.sensitivity import Assignment, measure_sensitivity
from qsam2_ao.spelling import counted, did_you_mean
from qsam2_ao.workflow.models import load_model


def test_one_of_a_thing_is_in_the_singular():
    assert [counted(count, "video") for count in (0, 1, 2, 12345)] == [
        "0 videos",
        "1 video",
        "2 videos",
        "12,345 videos",
    ]


QKV = "image_encoder.trunk.blocks.0.attn.qkv"


@pytest.fixture(scope="module")
def model() -> Any:
    return load_embedded()


def by_name(name: str) -> QConfigMapping:
    return QConfigMapping().set_global(lsc_qconfig(4, None)).set_module_name(name, lsc_qconfig(8, None))


def by_regex(pattern: str) -> QConfigMapping:
    return QConfigMapping().set_global(lsc_qconfig(4, None)).set_module_name_regex(pattern, lsc_qconfig(8, None))


CASES: list[tuple[Callable[[Any], object], str]] = [
    (lambda m: prepare_qsam2(m, "w4a9"), "unknown preset 'w4a9'.*did you mean 'w4a8'"),
    (lambda m: prepare_qsam2(m, {"mask_decodr": "w4a8"}), "unknown region 'mask_decodr'.*did you mean 'mask_decoder'"),
    (lambda m: prepare_qsam2(m, by_name(QKV[:-1])), f"names no layer .*did you mean '{QKV}'"),
    (lambda m: prepare_qsam2(m, by_name("trunk.blocks.0.attn.qkv")), f"did you mean '{QKV}'"),
    (lambda m: prepare_qsam2(m, by_name(f"module.{QKV}")), f"did you mean '{QKV}'"),
    (lambda m: prepare_qsam2(m, by_regex(r"trunk\.blocks\.0")), f"it matches inside of '{QKV}'"),
    (lambda m: prepare_qsam2(m, "w4a8", vrc_regions=("image_encodr",)), "did you mean 'image_encoder'"),
    (lambda m: prepare_qsam2(m, "w4a8", vrc_regions="image_encoder"), r"write \('image_encoder',\)"),
    (lambda m: prepare_qsam2(m, "w4a8", rounding="gtpq"), "did you mean 'gptq'"),
    (lambda m: measure_sensitivity(m, [], layers=["attn.qkv"]), "no quantizable layer 'attn.qkv'.*did you mean '"),
    (lambda m: measure_sensitivity(m, [], vrc_regions=("encoder",)), "unknown region 'encoder'"),
    (lambda m: Assignment({"blocks.0.attn.qkv": 4}, 0, 0, 0, "sqnr").check_model(m), f"did you mean '{QKV}'"),
    (lambda m: get_target("int88"), "did you mean 'int8'"),
    (lambda m: load_model("embedded", target="pakced"), "did you mean 'packed'"),
    (lambda m: load_model("embedded", target="int8"), "--target int8 is for packed files"),
    (lambda m: select(quick_plan(), ["heavy-tailed", "plane"]), "unknown model 'plane'"),
    (lambda m: select(quick_plan(), None, ["QSAM"]), "unknown method 'QSAM'.*did you mean 'QSAM2'"),
]


@pytest.mark.parametrize(("use", "message"), CASES)
def test_an_unknown_name_is_an_error(model: Any, use: Callable[[Any], object], message: str) -> None:
    with pytest.raises(QSAM2Error, match=message):
        use(model)


def test_names_without_their_beginning_come_first() -> None:
    known = ["image_encoder.neck.conv", "neck.convs", "memory_encoder"]
    assert did_you_mean("neck.conv", known) == "; did you mean 'image_encoder.neck.conv'?"
    assert did_you_mean("zzz", known) == ""
