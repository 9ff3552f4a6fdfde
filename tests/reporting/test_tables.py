"""The comparison table: every figure, and its difference to the first row."""

from __future__ import annotations

from rich.console import Console

from qsam2_ao.reporting.tables import ModelRow, comparison_table


def rendered(rows: list[ModelRow]) -> list[str]:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(rows))
    return console.export_text().splitlines()


def test_rows_show_scores_differences_and_sizes():
    lines = rendered(
        [
            ModelRow("float32", "32", 10 * 2**20, j=80.0, f=84.0, jf=82.0, miou=85.0),
            ModelRow("w2a8", "2 / 8", 2**20, j=78.5, f=82.5, jf=80.54, miou=85.24),
        ]
    )
    before, after = (next(line for line in lines if name in line) for name in ("float32", "w2a8"))
    assert all(text in before for text in ("32", "82.0", "80.0", "84.0", "85.0", "10.0 MiB"))
    differences = lines[lines.index(after) + 1]
    assert all(text in after for text in ("2 / 8", "80.5", "78.5", "85.2", "1.0 MiB"))
    assert [text for text in differences.split() if text[0] in "+-1"] == ["-1.5", "-1.5", "-1.5", "+0.2", "10.0x"]


def test_what_nobody_measured_is_no_column_and_what_one_row_lacks_is_a_dash():
    lines = rendered([ModelRow("a", "32", jf=82.0), ModelRow("b", "4", 100)])
    heading = next(line for line in lines if "model" in line)
    assert "J&F" in heading
    assert "mIoU" not in heading
    assert any("b" in line and "-" in line and "100 B" in line for line in lines)


def test_rows_as_data():
    row = ModelRow("a", "4 / 8", 12, jf=80.0)
    assert row.to_dict() == {
        "name": "a", "bits": "4 / 8", "file_bytes": 12, "j": None, "f": None, "jf": 80.0, "miou": None,
    }  # fmt: skip
