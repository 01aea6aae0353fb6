"""A file or folder of exported profiles that is there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xpeft_server.output_file import output_file

from ..screen import fail

if TYPE_CHECKING:
    from xpeft_profiles.transfer import Target


@contextmanager
def opened_target(path: Path, *, force: bool) -> Iterator[Target]:
    """Args: force: whether a file that is there is replaced; a folder never is. Raises: OSError.

    A name with a suffix that says nothing here is refused: it is meant to be a file of another form.
    """
    from xpeft_profiles.transfer import FILE_SUFFIXES, Form, format_of, open_target

    form = format_of(path)
    if form.form is Form.FOLDER:
        if path.suffix and not path.is_dir():
            known = ", ".join(FILE_SUFFIXES)
            fail(f"{path} has none of the known forms: a file ends in one of {known}, a new folder has no suffix")
        with _new_folder(path) as folder:
            yield folder
        return
    if path.is_dir() or (path.exists() and not force):
        fail(f"{path} is there already: give another target{'' if path.is_dir() else ', or --force to replace it'}")
    with output_file(path, overwrite=force) as file, open_target(file, form) as target:
        yield target


@contextmanager
def _new_folder(path: Path) -> Iterator[Target]:
    """Written beside ``path``, or what it leads to, and moved into place at the end."""
    from xpeft_profiles.transfer import FolderTarget

    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        fail(f"{path} is there already and not an empty folder: give another target")
    if path.exists() and path.samefile(Path.cwd()):
        fail(f"{path} is the folder that this command runs in: give another target")
    path = Path(os.path.realpath(path))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.draft")
    draft.mkdir()
    try:
        yield FolderTarget(draft)
        os.sync()
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
