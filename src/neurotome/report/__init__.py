"""What a run or a dataset looks like, as one page and pictures."""

from neurotome.report.page import build_report

__all__ = ["build_report"]
