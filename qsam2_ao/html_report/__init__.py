"""One HTML file about a run, an evaluation, a comparison or a packed file.

Example:
    >>> from qsam2_ao.html_report import write_report
    >>> write_report(["outputs/demo"], "outputs/demo/report.html")  # doctest: +SKIP
"""

from .write import ReportOptions, write_report

__all__ = ["ReportOptions", "write_report"]
