"""Videos to evaluate on, and what they are evaluated with."""

from __future__ import annotations

from pathlib import Path

from data_layouts import save_json, video, write_maps

from qsam2_ao.workflow.labelled import labelled_videos


def test_objects_that_begin_later_count_where_a_data_set_lists_them(tmp_path: Path) -> None:
    write_maps(tmp_path / "val", "cc", video())
    assert labelled_videos(str(tmp_path / "val"), format="mose").metric == "davis"
    save_json(tmp_path / "val/val_meta.json", {"videos": {"cc": {"objects": {str(i): {} for i in video().object_ids}}}})
    opened = labelled_videos(str(tmp_path))
    assert (opened.about["format"], opened.metric) == ("lvos", "sav")
