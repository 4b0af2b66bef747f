"""What a run or a dataset looks like, as one page and pictures, and what to do next."""

from neurotome.report.page import build_report, check_scored_on
from neurotome.report.verdict import verdict

__all__ = ["build_report", "check_scored_on", "verdict"]
