"""The scripts that write: Redis runs each as a whole, so the precondition and the write are one step.

A profile's value is ``created, updated`` as two little-endian doubles, the version's 32 bytes, then the record.
A tenant with profiles has, beside the set of their names, a key that says so. If the set is gone, or lacks the name of
an existing profile, names were lost: a put notices that, and `NAMES_BACK` puts all of them into the set again.
Scripts read everything before they write anything: one that fails has changed nothing.
"""

from __future__ import annotations

import struct

from ..store import Match, StoredProfile

TIMES = struct.Struct("<dd")
DIGEST_BYTES = 32
ENVELOPE_BYTES = TIMES.size + DIGEST_BYTES

# ARGV from ``first``: how many versions If-Match has, how many If-None-Match has (-1: no such condition), then both.
# ``damaged``: the record that is there is not that of ``current``; If-None-Match does not find it by that version.
_PRECONDITION = """
local function named(first, count, current, damaged)
    for i = first, first + count - 1 do
        if current and (ARGV[i] == '*' or ARGV[i] == current and not damaged) then return true end
    end
    return false
end

local function refused(first, current, damaged)
    local matches, none_matches = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
    if matches >= 0 and not named(first + 2, matches, current) then return true end
    return none_matches >= 0 and named(first + 2 + math.max(matches, 0), none_matches, current, damaged)
end
"""

# KEYS: profile, version, names, written. ARGV: name, version, its digest, record, most profiles (-1: any number),
# 1 where names that were lost have been looked for, precondition.
PUT = (
    _PRECONDITION
    + """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local current = redis.call('GET', KEYS[2])
local kept = redis.call('GET', KEYS[1])
local listed = redis.call('ZSCORE', KEYS[3], ARGV[1])
local same = current == ARGV[2]
local whole = same and kept and string.sub(kept, 17) == ARGV[3] .. ARGV[4]
if refused(7, current, same and not whole) then return {'refused', current or ''} end
local most, names = tonumber(ARGV[5]), redis.call('ZCARD', KEYS[3])
local lost = current and not listed or names == 0 and redis.call('EXISTS', KEYS[4]) == 1
if lost and ARGV[6] == '0' then return {'lost', ''} end
if not current and most >= 0 and names >= most then return {'full', ''} end
local status, created = 'created', now
if current then
    status = 'replaced'
    if kept and #kept >= 16 then created = struct.unpack('<d', kept) end
    if whole then
        if not listed then redis.call('ZADD', KEYS[3], 0, ARGV[1]) end
        return {'identical', string.sub(kept, 1, 16)}
    end
end
local times = struct.pack('<dd', created, now)
redis.call('SET', KEYS[1], times .. ARGV[3] .. ARGV[4])
redis.call('SET', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('SET', KEYS[4], '')
return {status, times}
"""
)

# KEYS: names, written. ARGV: how a version's key begins, how a profile's begins, 1 to replace or 0 to keep what is
# there, then of each profile its name, version, and digest and record in one. The keys that are made of them are the
# tenant's, too. Returns a letter of the outcome for each profile, the times for each, the versions that were kept, and
# 1 if the tenant had lost names.
PUT_MANY = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local version_keys, profile_keys = {}, {}
for i = 4, #ARGV, 3 do
    version_keys[#version_keys + 1] = ARGV[1] .. ARGV[i]
    profile_keys[#profile_keys + 1] = ARGV[2] .. ARGV[i]
end
local versions = redis.call('MGET', unpack(version_keys))
local lost = redis.call('ZCARD', KEYS[1]) == 0 and redis.call('EXISTS', KEYS[2]) == 1
-- A key of another type is absent to MGET; GET refuses it.
local absent = {}
for i = 1, #version_keys do
    if not versions[i] then
        absent[#absent + 1] = version_keys[i]
        absent[#absent + 1] = profile_keys[i]
    end
end
if #absent > 0 and redis.call('EXISTS', unpack(absent)) > 0 then
    for _, key in ipairs(absent) do redis.call('GET', key) end
end
local first = struct.pack('<dd', now, now)
local letters, times, kept, values, names = {}, {}, {}, {}, {}
for i = 1, #version_keys do
    local name, version, content = ARGV[3 * i + 1], ARGV[3 * i + 2], ARGV[3 * i + 3]
    local current = versions[i]
    letters[i], times[i] = 'c', first
    if current then
        local stored = redis.call('GET', profile_keys[i])
        local whole = stored and #stored >= 16
        if whole and current == version and string.sub(stored, 17) == content then
            letters[i], times[i] = 'i', string.sub(stored, 1, 16)
        elseif ARGV[3] == '0' then
            letters[i], times[i] = 'k', whole and string.sub(stored, 1, 16) or struct.pack('<dd', 0, 0)
            kept[#kept + 1] = current
        else
            letters[i], times[i] = 'r', struct.pack('<dd', whole and struct.unpack('<d', stored) or now, now)
        end
    end
    if letters[i] == 'c' or letters[i] == 'r' then
        local at = #values
        values[at + 1], values[at + 2] = profile_keys[i], times[i] .. content
        values[at + 3], values[at + 4] = version_keys[i], version
    end
    local unlisted = current and not redis.call('ZSCORE', KEYS[1], name)
    if letters[i] == 'c' or unlisted then
        names[#names + 1] = 0
        names[#names + 1] = name
    end
    lost = lost or unlisted
end
if #values > 0 then
    redis.call('MSET', unpack(values))
    redis.call('SET', KEYS[2], '')
end
if #names > 0 then redis.call('ZADD', KEYS[1], unpack(names)) end
return {table.concat(letters), table.concat(times), kept, lost and 1 or 0}
"""

# KEYS: names. ARGV: how a version's key begins, then names. Those whose version is still there are put into the set.
NAMES_BACK = """
for i = 2, #ARGV do
    if redis.call('EXISTS', ARGV[1] .. ARGV[i]) == 1 then redis.call('ZADD', KEYS[1], 0, ARGV[i]) end
end
"""

# KEYS: profile, version, names, written. ARGV: name, precondition.
DELETE = (
    _PRECONDITION
    + """
local current = redis.call('GET', KEYS[2])
redis.call('ZSCORE', KEYS[3], ARGV[1])
if refused(2, current) then return {'refused', current or ''} end
local removed = redis.call('DEL', KEYS[1], KEYS[2])
if redis.call('ZREM', KEYS[3], ARGV[1]) == 1 and redis.call('ZCARD', KEYS[3]) == 0 then redis.call('DEL', KEYS[4]) end
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
