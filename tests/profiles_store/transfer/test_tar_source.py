from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import SourceInvalid
from xpeft_profiles.transfer import Entry, Refusal, bounded_file, open_source

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def read(path: Path, *, max_bytes: int = 5000) -> list[Entry | Refusal]:
    source = open_source(path, max_bytes=max_bytes)
    try:
        return list(source.entries())
    finally:
        source.close()


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """An archive of members: name, content or None, and fields of TarInfo."""

    def write(*members: tuple[str, bytes | None, dict[str, Any]], form: int = tarfile.PAX_FORMAT) -> Path:
        path = tmp_path / "p.tar"
        with tarfile.open(path, "w", format=form) as tar:
            for name, content, fields in members:
                member = tarfile.TarInfo(name)
                member.size = len(content or b"")
                for field, value in fields.items():
                    setattr(member, field, value)
                tar.addfile(member, io.BytesIO(content) if content is not None else None)
        return path

    return write


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 5000])
def test_members_are_entries_in_every_form_of_tar(archive: Any, form: int, size: int) -> None:
    content = bytes(n % 251 for n in range(size))
    path = archive(
        ("a.safetensors", content, {}),
        ("./acme/b.safetensors", b"b", {}),
        ("acme", None, {"type": tarfile.DIRTYPE}),
        ("acme/" + "n" * 80 + ".safetensors", b"c", {"mtime": 2**33 if form != tarfile.USTAR_FORMAT else 0}),
        form=form,
    )
    found = read(path)
    assert [(each.tenant, each.name, each.file) for each in found if isinstance(each, Entry)] == [
        (None, "a", content),
        ("acme", "b", b"b"),
        ("acme", "n" * 80, b"c"),
    ]
    assert len(found) == 3
    assert found[1].where == "p.tar: './acme/b.safetensors'"


def test_hidden_files_are_left_out(archive: Any) -> None:
    path = archive(
        ("./.journal.jsonl", b"x" * 6000, {}),
        ("acme/._b.safetensors", b"x", {}),
        (".git/c.safetensors", b"x", {}),
        ("./a.safetensors", b"a", {}),
    )
    assert [each[1:] for each in read(path)] == [(None, "a", b"a")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_longest_names_come_back(archive: Any, form: int) -> None:
    tenant, name = "t" * 128, "n" * 128
    path = archive((f"{tenant}/{name}.safetensors", b"x", {}), ("z.safetensors", b"y", {}), form=form)
    assert [each[1:] for each in read(path)] == [(tenant, name, b"x"), (None, "z", b"y")]


@pytest.mark.parametrize(
    ("name", "content", "fields", "error"),
    [
        ("/etc/passwd.safetensors", b"x", {}, "does not lie below the source"),
        ("../up.safetensors", b"x", {}, "does not lie below the source"),
        ("acme/../up.safetensors", b"x", {}, "does not lie below the source"),
        ("a/b/c.safetensors", b"x", {}, "lies too deep"),
        ("README", b"x", {}, "is no profile file"),
        ("l.safetensors", None, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link"),
        ("l.safetensors", None, {"type": tarfile.LNKTYPE, "linkname": "a.safetensors"}, "a hard link"),
        ("d.safetensors", None, {"type": tarfile.CHRTYPE}, "a device"),
        ("d.safetensors", None, {"type": tarfile.BLKTYPE}, "a device"),
        ("f.safetensors", None, {"type": tarfile.FIFOTYPE}, "a pipe"),
        ("s.safetensors", b"x", {"type": b"S"}, "of a kind that is not known"),
        ("big.safetensors", bytes(5001), {}, "has 5001 bytes, at most 5000 are allowed"),
    ],
)
def test_a_hostile_member_is_refused_by_name_and_the_next_is_read(
    archive: Any, name: str, content: bytes | None, fields: dict[str, Any], error: str
) -> None:
    path = archive(("a.safetensors", b"a", {}), (name, content, fields), ("z.safetensors", b"z", {}))
    first, refusal, last = read(path)
    assert (first.name, last.name, last.file) == ("a", "z", b"z")
    assert isinstance(refusal, Refusal)
    assert error in refusal.error
    assert repr(name) in refusal.where


def header(name: str = "a.safetensors", size: bytes = b"0\0", kind: bytes = b"0") -> bytearray:
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    return summed(block)


def summed(block: bytearray) -> bytearray:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"x" * 148 + b"0000777\0" + b"x" * 356, "checksum is wrong"),
        (b"x" * 512, "is not a number"),
        (b"x" * 100, "ends in the middle of a header"),
        (header(size=b"1000\0"), "ends in the middle of an entry"),
        (header(size=b"9999999\0"), "is not a number"),
        (header(size=b"\xff" * 12), "is not a number"),
        (header(size=b"\x80" + b"\xff" * 11), "an entry of more than"),
        (header(size=b"77777777777\0"), "an entry of more than"),
        (header(size=b"77777777777\0", kind=b"L"), "a header of 8589934591 bytes"),
        (header(size=b"77777777777\0", kind=b"x"), "a header of 8589934591 bytes"),
        (summed(header(kind=b"S")[:482] + b"\x01" + bytes(29)), "ends in the middle of an entry"),
        (header(size=b"4\0", kind=b"x") + b"9 a=".ljust(512, b"\0"), "is not a field of a pax header"),
        (header(size=b"4\0", kind=b"x") + b"none".ljust(512, b"\0"), "is not a field of a pax header"),
        (
            header(size=b"10\0", kind=b"x") + b"8 a=bc\n".ljust(512, b"\0"),
            "is not a field of a pax header",
        ),
        (
            header(size=b"14\0", kind=b"x") + b"12 size=-10\n".ljust(512, b"\0") + header(),
            "b'-10' is not a size",
        ),
    ],
)
def test_a_broken_archive_ends_the_reading_with_its_name(tmp_path: Path, content: bytes, error: str) -> None:
    path = tmp_path / "p.tar"
    path.write_bytes(header("first.safetensors") + content)
    source = open_source(path, max_bytes=5000)
    entries = source.entries()
    assert next(entries).name == "first"
    with pytest.raises(SourceInvalid, match=r"^p\.tar: ") as refused:
        list(entries)
    assert error in refused.value.message
    source.close()


def test_a_zipped_bomb_takes_no_memory_and_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_file, "SKIPPED_MAX", 20 << 20)
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        for size in (b"50000000\0", b"200000000\0"):
            file.write(header(size=size))
            file.write(bytes(int(size[:-1], 8)))
    source = open_source(path, max_bytes=5000)
    entries = source.entries()
    tracemalloc.start()
    assert "has 10485760 bytes" in next(entries).error
    with pytest.raises(SourceInvalid, match="an entry of more than 20971520 bytes"):
        next(entries)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    source.close()
    assert peak < 4 << 20


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_an_archive_that_was_cut_off_between_two_members_is_told_from_a_whole_one(archive: Any, suffix: str) -> None:
    whole = archive(("a.safetensors", b"a", {}), ("b.safetensors", b"b", {}), form=tarfile.USTAR_FORMAT).read_bytes()
    for blocks, names in ((4, ["a", "b"]), (2, ["a"]), (0, [])):
        cut = whole[: blocks * 512]
        path = Path(archive(form=tarfile.USTAR_FORMAT)).with_suffix(suffix)
        path.write_bytes(cut if suffix == ".tar" else gzip.compress(cut))
        source = open_source(path, max_bytes=5000)
        found: list[str] = []
        with pytest.raises(SourceInvalid, match=r"^p\.tar(\.gz)?: it ends without its end marker: it was cut off$"):
            found.extend(entry.name for entry in source.entries())
        source.close()
        assert found == names


def test_one_block_of_zeros_ends_an_archive_whatever_is_behind_it(archive: Any) -> None:
    path = archive(("a.safetensors", b"a", {}), ("b.safetensors", b"b", {}), form=tarfile.USTAR_FORMAT)
    whole = path.read_bytes()
    for content in (whole[: 5 * 512], whole + b"\xff" * 999):
        path.write_bytes(content)
        assert [each.name for each in read(path)] == ["a", "b"]


@pytest.mark.parametrize("name", ["sparse.safetensors", ".sparse"])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_sparse_member_of_many_pieces_is_read_over_alone(tmp_path: Path, name: str, blocks: int) -> None:
    """GNU's: the header has four pieces, blocks of 21 follow as long as each says that there is another."""
    sparse = header(name, b"1000\0", b"S")
    sparse[482] = blocks > 0
    pieces = b"".join(b"\x01" * 504 + bytes([block + 1 < blocks]) + bytes(7) for block in range(blocks))
    path = tmp_path / "p.tar"
    path.write_bytes(summed(sparse) + pieces + b"\xff" * 512 + header("z.safetensors") + bytes(1024))
    found = read(path)
    assert found[-1].name == "z"
    if name == ".sparse":
        assert len(found) == 1
    else:
        (refusal, _) = found
        assert isinstance(refusal, Refusal)
        assert "of a kind that is not known" in refusal.error
