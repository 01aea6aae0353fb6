"""Many profiles at once, into a store and out of it: folders, tar archives and JSON lines of profile files."""

from __future__ import annotations

from .batches import Batch, BatchReader
from .entries import Entry, Refusal, Source
from .export import export_profiles
from .formats import FILE_SUFFIXES, Form, Format, format_of
from .importing import ImportTarget, Status, StoreTarget, Totals, import_profiles, would_be
from .sources import open_source
from .targets import FolderTarget, Target, open_target

__all__ = [
    "FILE_SUFFIXES",
    "Batch",
    "BatchReader",
    "Entry",
    "FolderTarget",
    "Form",
    "Format",
    "ImportTarget",
    "Refusal",
    "Source",
    "Status",
    "StoreTarget",
    "Target",
    "Totals",
    "export_profiles",
    "format_of",
    "import_profiles",
    "open_source",
    "open_target",
    "would_be",
]
