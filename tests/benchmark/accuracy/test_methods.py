from __future__ import annotations

import pytest

from qsam2_ao.benchmark.accuracy.methods import METHODS, Setting, parse_setting
from qsam2_ao.benchmark.accuracy.plan import (
    COLUMNS,
    HALF_WAY,
    REAL_MODELS,
    TRAINED,
    UNTRAINED,
    UNTRAINED_COLUMNS,
    Search,
    full_plan,
    quick_plan,
    real_plan,
    select,
)
from qsam2_ao.benchmark.accuracy.report import REAL_GOALS
from qsam2_ao.errors import QConfigError
from qsam2_ao.recipe.prepared import code_range


def test_settings_by_name():
    assert parse_setting("W2A4") == Setting("W2A4", 2, 4, True)
    assert parse_setting("W3") == Setting("W3", 3, None, True)
    assert parse_setting("PTQ W2.5") == Setting("PTQ W2.5", 2.5, None, False)
    assert parse_setting("PTQ W8A8") == Setting("PTQ W8A8", 8, 8, False)
    for name in ("W1", "A4", "W2A1", "w2a4", "W9A8", "W2.4", "W8.5", "W1.5", ""):
        with pytest.raises(QConfigError, match="unknown setting"):
            parse_setting(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.quantizer])
def test_every_method_has_the_same_bits_everywhere(name):
    with pytest.raises(QConfigError, match=r"PTQ W2\.5 is for mixed bits"):
        METHODS[name].recipe(parse_setting(HALF_WAY))
    for setting in map(parse_setting, {*COLUMNS, *UNTRAINED_COLUMNS} - {HALF_WAY}):
        recipe = METHODS[name].recipe(setting)
        for mapping in recipe.values():
            weight = mapping.global_qconfig.weight()
            assert code_range(weight, name)[2] == setting.weight_bits
            if setting.activation_bits is not None:
                assert code_range(mapping.global_qconfig.activation(), name)[2] == setting.activation_bits
            edges = {qconfig.weight().quant_max for qconfig in mapping.module_name_regex_qconfigs.values()}
            assert edges <= {127, 255}


def test_the_plan_has_every_setting_and_no_cell_twice():
    plan = full_plan()
    experiments = [(u.model, u.method, u.setting, seed) for u in plan for seed in u.seeds]
    assert len(set(experiments)) == len(experiments)
    for model in ("plain", "heavy-tailed"):
        for setting in TRAINED:
            rivals = {u.method for u in plan if (u.model, u.setting) == (model, setting)}
            assert rivals >= {"MinMax-EMA", "LSQ", "LSQ+", "PACT-SAWB", "torchao range learning", "LSC", "QSAM2"}
        assert {u.setting for u in plan if u.model == model} >= set(UNTRAINED)
    assert {u.method for u in plan + real_plan()} == set(METHODS)


def test_the_plan_for_real_pictures_searches_for_every_setting():
    plan = real_plan(seeds=2)
    experiments = [(u.model, u.method, u.setting, seed) for u in plan for seed in u.seeds]
    assert len(set(experiments)) == len(experiments)
    assert {u.search for u in plan if u.setting == "W2A2"} >= {Search("LSQ", model, "W2A2") for model in REAL_MODELS}
    assert {s for s in REAL_GOALS if s.setting not in {u.setting for u in plan if u.model == s.model}} == set()


def test_variants_have_the_learning_rate_of_what_they_vary():
    searched = {u.method: u.search.method for u in full_plan() if u.setting == "W2A4"}
    assert searched["VRC+LSC, signed grid"] == "VRC+LSC"
    assert searched["VRC+LSQ"] == "LSQ"
    assert searched["LSQ+"] == "LSQ+"
    assert all(u.search is None for u in full_plan() if u.setting.startswith("PTQ"))


def test_selection_narrows():
    assert {u.method for u in select(full_plan(), methods=["LSQ"])} == {"LSQ"}
    assert select(quick_plan()) == quick_plan()
    with pytest.raises(QConfigError, match="unknown model 'plain'"):
        select(quick_plan(), models=["plain"])
