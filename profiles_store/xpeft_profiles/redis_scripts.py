"""The two scripts that write: Redis runs each as a whole, so the precondition and the write are one step.

A profile's value is ``created, updated`` as two little-endian doubles, the version's 32 bytes, then the record.
All reading stands before all writing: a script that fails has changed nothing.
"""

from __future__ import annotations

import struct

from .store import Match, StoredProfile

TIMES = struct.Struct("<dd")
DIGEST_BYTES = 32
ENVELOPE_BYTES = TIMES.size + DIGEST_BYTES

# ARGV from ``first``: how many versions If-Match has, how many If-None-Match has (-1: no such condition), then both.
_PRECONDITION = """
local function named(first, count, current)
    for i = first, first + count - 1 do
        if current and (ARGV[i] == '*' or ARGV[i] == current) then return true end
    end
    return false
end

local function refused(first, current)
    local matches, none_matches = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
    if matches >= 0 and not named(first + 2, matches, current) then return true end
    return none_matches >= 0 and named(first + 2 + math.max(matches, 0), none_matches, current)
end
"""

# KEYS: profile, version, names. ARGV: name, version, its digest, record, precondition.
PUT = (
    _PRECONDITION
    + """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local current = redis.call('GET', KEYS[2])
local kept = redis.call('GET', KEYS[1])
redis.call('ZSCORE', KEYS[3], ARGV[1])
if refused(5, current) then return {'refused', current or ''} end
local status, created = 'created', now
if current then
    status = 'replaced'
    if kept and #kept >= 16 then created = struct.unpack('<d', kept) end
    if current == ARGV[2] and kept and string.sub(kept, 17) == ARGV[3] .. ARGV[4] then
        return {'identical', string.sub(kept, 1, 16)}
    end
end
local times = struct.pack('<dd', created, now)
redis.call('SET', KEYS[1], times .. ARGV[3] .. ARGV[4])
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
return {status, times}
"""
)

# KEYS: profile, version, names. ARGV: name, precondition.
DELETE = (
    _PRECONDITION
    + """
local current = redis.call('GET', KEYS[2])
redis.call('ZSCORE', KEYS[3], ARGV[1])
if refused(2, current) then return {'refused', current or ''} end
local removed = redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
return {removed > 0 and 'deleted' or 'absent', ''}
"""
)


def precondition_arguments(match: Match) -> list[str | int]:
    matches, none_matches = match.if_match, match.if_none_match
    counts = [-1 if versions is None else len(versions) for versions in (matches, none_matches)]
    return [*counts, *(matches or ()), *(none_matches or ())]


def open_envelope(value: bytes) -> StoredProfile:
    """A value as ``PUT`` wrote it. Of one that is too short to be one, all of it is the (damaged) record."""
    if len(value) < ENVELOPE_BYTES:
        return StoredProfile("", value, 0.0, 0.0)
    created, updated = TIMES.unpack_from(value)
    version = "sha256:" + value[TIMES.size : ENVELOPE_BYTES].hex()
    return StoredProfile(version, value[ENVELOPE_BYTES:], created, updated)
