"""A Secret or ConfigMap that changes under a running server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import new_key, write_keys
from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.tenant_limits import LimitsFile


def swap(folder: Path, write: Callable[[Path], object]) -> Path:
    """Put a file into a volume as the kubelet does: a new folder, then one rename of the link that leads to it."""
    new = Path(folder / f"..{len(list(folder.iterdir()))}")
    new.mkdir()
    write(new / "file.json")
    (folder / "..data_tmp").symlink_to(new.name)
    (folder / "..data_tmp").rename(folder / "..data")
    if not (folder / "file.json").is_symlink():
        (folder / "file.json").symlink_to("..data/file.json")
    return folder / "file.json"


def test_keys_and_limits_are_read_again_when_the_kubelet_swaps_the_folder_of_a_volume(tmp_path: Path) -> None:
    keys, limits = tmp_path / "keys", tmp_path / "limits"
    keys.mkdir()
    limits.mkdir()
    ring = KeyRing(swap(keys, lambda file: write_keys(file, ())))
    table = LimitsFile(swap(limits, lambda file: file.write_text('{"default": {"max_profiles": 1}}')))
    secret, entry = new_key(id="a", tenant="a", role=Role.ADMIN, expires=None)
    swap(keys, lambda file: write_keys(file, (entry,)))
    swap(limits, lambda file: file.write_text('{"default": {"max_profiles": 2}}'))
    assert ring.find(secret.encode()) is None
    ring.file.refresh()
    table.file.refresh()
    assert ring.find(secret.encode()) == entry.principal
    assert table.of("a").max_profiles == 2
