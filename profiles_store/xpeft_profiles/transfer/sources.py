"""Opening what profiles are imported from."""

from __future__ import annotations

from pathlib import Path

from ..errors import SourceInvalid
from .entries import Source
from .folder_source import FolderSource
from .formats import Form, format_of
from .jsonl_source import JsonlSource
from .tar_source import TarSource


def open_source(path: Path, *, max_bytes: int) -> Source:
    """A folder, or a file of one of the forms that `format_of` knows. Args: max_bytes: of a profile file.

    Raises: SourceInvalid.
    """
    if path.is_dir():
        return FolderSource(path, max_bytes=max_bytes)
    if not path.exists():
        raise SourceInvalid(f"{path} is not there")
    form, gzipped = format_of(path)
    match form:
        case Form.TAR:
            return TarSource(path, gzipped=gzipped, max_bytes=max_bytes)
        case Form.JSONL:
            return JsonlSource(path, gzipped=gzipped, max_bytes=max_bytes)
        case Form.FOLDER:
            raise SourceInvalid(f"{path} is neither a folder nor a .tar, .tar.gz, .jsonl or .jsonl.gz")
