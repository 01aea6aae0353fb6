"""The scripts that write tuning jobs: what they check and what they write is one step.

A job's record is a string of its own. ``jobs`` is the sorted set of all the tenant's ids, with equal scores: ids sort
by age. ``jobs:unfinished`` has the ids of the unfinished ones, scored by the end of their lease, in Redis's own time.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
"""

# KEYS: job, jobs, unfinished. ARGV: id, record, lease in seconds, most unfinished, most kept, how a job's key begins.
# Records whose time is over are gone by themselves; their ids, which are among the oldest, are removed here.
ADD = (
    _NOW
    + """
if redis.call('ZCOUNT', KEYS[3], '(' .. string.format('%.6f', now), '+inf') >= tonumber(ARGV[4]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[3]), ARGV[1])
local beyond = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[5])
for rank, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, math.max(beyond, 100) - 1)) do
    local gone = redis.call('EXISTS', ARGV[6] .. id) == 0
    if gone or (rank <= beyond and not redis.call('ZSCORE', KEYS[3], id)) then
        redis.call('DEL', ARGV[6] .. id)
        redis.call('ZREM', KEYS[2], id)
    end
end
return 1
"""
)

# KEYS: job, unfinished. ARGV: id, record, lease in seconds, unix milliseconds at which a finished one is dropped or "".
REPLACE = (
    _NOW
    + """
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[4] == '' then
    redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
else
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('PEXPIREAT', KEYS[1], ARGV[4])
end
return 1
"""
)

# KEYS: unfinished. ARGV: lease in seconds, ids.
RENEW = (
    _NOW
    + """
local renewed = {}
for i = 2, #ARGV do
    renewed[i - 1] = 0
    if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
        redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), ARGV[i])
        renewed[i - 1] = 1
    end
end
return renewed
"""
)
