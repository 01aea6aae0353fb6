"""Looks for a file that `read_profile_file` takes and should not, or fails of in any way but by ProfileInvalid.

Run it like ``fuzz_record.py``.
"""

from __future__ import annotations

import sys


def check(data: bytes) -> None:
    """What is read can be kept, and written so that it is read as the same version. Raises: whatever breaks that."""
    from xpeft_profiles import (
        ProfileInvalid,
        decode_record,
        encode_record,
        read_profile_file,
        write_profile_file,
    )

    try:
        profile = read_profile_file(data, max_bytes=1 << 20)
    except ProfileInvalid as error:
        if len(error.message) > 1000:
            raise AssertionError(f"the message has {len(error.message)} characters") from error
        return
    written = write_profile_file(profile)
    versions = {profile.version, decode_record(encode_record(profile)).version, read_profile_file(written).version}
    if len(versions) > 1 or write_profile_file(read_profile_file(written)) != written:
        raise AssertionError(f"versions {versions}, written as {written!r}")


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["xpeft_profiles"]):
        import xpeft_profiles  # noqa: F401
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
