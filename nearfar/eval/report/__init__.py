"""Reports: one self-contained page, its numbers as JSON, its tables as Markdown."""

from __future__ import annotations

from nearfar.eval.report.examples import worst_queries
from nearfar.eval.report.model import (
    ExpectedDocument,
    FrontierPoint,
    ModelSection,
    QueryExample,
    Report,
    ReturnedDocument,
    library_versions,
)
from nearfar.eval.report.write import write_report

__all__ = [
    "ExpectedDocument",
    "FrontierPoint",
    "ModelSection",
    "QueryExample",
    "Report",
    "ReturnedDocument",
    "library_versions",
    "worst_queries",
    "write_report",
]
