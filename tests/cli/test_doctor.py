"""``qsam2 doctor``: for people, for scripts, and on machines that lack something."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from qsam2_ao.workflow import doctor


def test_facts_for_scripts(run):
    result = run("doctor", "--json", "--no-timing")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["environment"]["torch"] == torch.__version__.partition("+")[0]
    targets = {target["name"]: target for target in facts["targets"] if target["device"] == "cpu"}
    assert set(targets) == {"int8", "onednn", "packed", "dequantized", "int4"}
    assert targets["packed"]["reason"] is None
    taken = next(name for name in ("int8", "onednn", "packed") if targets[name]["reason"] is None)
    assert facts["auto"].startswith(taken)
    assert all(target["milliseconds"] is None for target in facts["targets"])


@pytest.mark.slow
def test_facts_and_times_for_people(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_SECONDS", 0.01)
    found = []
    diagnose = doctor.diagnose
    monkeypatch.setattr(doctor, "diagnose", lambda **options: found.append(diagnose(**options)) or found[0])
    result = run("doctor")
    assert result.exit_code == 0, result.stderr
    for text in ("processor", "target auto", "float", "packed", "ms"):
        assert text in result.stdout
    times = {target.name: target.milliseconds for target in found[0].targets if target.reason is None}
    assert times["float"]
    assert times["packed"]


def test_what_is_missing_comes_with_its_command(monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "av" else find(name, *rest))
    remedies = {finding.remedy: finding.problem for finding in doctor.diagnose(timing=False).findings}
    assert "av (reading and writing video files)" in remedies['pip install "qsam2_ao[video]"']


@pytest.mark.parametrize("machine", ["riscv64", "AMD64", "arm64"])  # as Windows and macOS name theirs
def test_a_machine_without_kernels_is_told_why(monkeypatch: pytest.MonkeyPatch, machine: str):
    monkeypatch.setattr("qsam2_ao.native.build.platform.machine", lambda: machine)
    found = doctor.diagnose(timing=False)
    assert found.auto.startswith("packed" if machine != "AMD64" else ("onednn", "packed"))
    assert machine in found.auto
    assert any("no int8 kernels on cpu" in finding.problem for finding in found.findings)


def test_processor_features_come_from_the_system():
    features = doctor.cpu_features()
    assert set(features) <= set(doctor.CPU_FEATURES) or len(features) == 1
