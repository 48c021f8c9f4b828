"""report.html: one self-contained page that tells, shows and proves what a comparison found."""

from arelu_tl.render.report.report import write_report, write_report_files

__all__ = ["write_report", "write_report_files"]
