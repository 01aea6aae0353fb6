"""Looks for a record that `decode_record` takes and should not, or fails of in any way but by RecordDamaged.

python tests/hostile/fuzz_record.py FOLDER [FOLDER …] [-max_total_time=SECONDS …]: libFuzzer's options; what is new to
it goes into the first folder, what breaks the rule into a file ``crash-…``.
"""

from __future__ import annotations

import struct
import sys
import zlib


def check(data: bytes) -> None:
    """The rule, for ``data`` as it is and under a checksum that fits. Raises: whatever breaks it."""
    from xpeft_profiles import RecordDamaged, decode_record, encode_record

    body = data[:-4]
    for record in (data, body + struct.pack("<I", zlib.crc32(body))):
        try:
            profile = decode_record(record)
        except RecordDamaged:
            continue
        if encode_record(profile) != record:
            raise AssertionError(f"{record!r} is another record than that of its profile, {encode_record(profile)!r}")


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["xpeft_profiles"]):
        import xpeft_profiles  # noqa: F401
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
