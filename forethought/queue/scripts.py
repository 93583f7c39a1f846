"""The Lua scripts: every queue operation that must be atomic.

Design: plain EVAL scripts, which run the same on Redis 6.2 and 7 and need no deployment step (the
client sends them again to a restarted Redis). Each returns plain integers, strings and lists. The price
is that Redis does nothing else while one runs, so each touches only a handful of entries.

At maxmemory Redis refuses a script until its first write, and no longer after it. So every script but PUT
begins with a write that takes no memory: results and leases go on, which frees memory, and only the
admission of further tasks waits. The price is that results may take memory beyond maxmemory, by as much as
they exceed their tasks.

A *retired* entry is one that was acknowledged and deleted: XACK returns 1 exactly once per delivery,
so a delivery is finished at most once. If a script needs the group and Redis has lost it, the NOGROUP
error is passed to the caller, who knows what it means there.
"""

from __future__ import annotations

PUT = """
-- KEYS: stream   ARGV: task_id, epoch, body of each message in turn
for i = 1, #ARGV, 3 do
  redis.call('XADD', KEYS[1], '*', 'task_id', ARGV[i], 'epoch', ARGV[i + 1], 'body', ARGV[i + 2])
end
return #ARGV / 3
"""

NEW_EPOCH = """
-- KEYS: epoch   ARGV: at_least
redis.call('PERSIST', KEYS[1])
local epoch = redis.call('INCR', KEYS[1])
local at_least = tonumber(ARGV[1])
if epoch < at_least then
  epoch = at_least
  redis.call('SET', KEYS[1], epoch)
end
return epoch
"""

RESTORE_EPOCH = """
-- KEYS: epoch   ARGV: epoch
local newest = tonumber(redis.call('GET', KEYS[1]) or 0)
local mine = tonumber(ARGV[1])
if newest < mine then
  newest = mine
  redis.call('PERSIST', KEYS[1])
  redis.call('SET', KEYS[1], newest)
end
return newest
"""

RAISE_WATERMARK = """
-- KEYS: watermark   ARGV: epoch, task_id
local held = redis.call('HMGET', KEYS[1], 'epoch', 'task_id')
local epoch, task_id = tonumber(held[1] or 0), tonumber(held[2] or 0)
local newer = tonumber(ARGV[1]) - epoch
if newer > 0 or (newer == 0 and tonumber(ARGV[2]) > task_id) then
  redis.call('PERSIST', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'task_id', ARGV[2])
end
return 1
"""

INSTANCE_ID = """
-- KEYS: instance id   ARGV: the id to set if there is none
local id = redis.call('GET', KEYS[1])
if id then return id end
redis.call('PERSIST', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""

SET_RUN = """
-- KEYS: run, epoch   ARGV: the manifest, its epoch
redis.call('PERSIST', KEYS[1])
if tonumber(redis.call('GET', KEYS[2]) or 0) > tonumber(ARGV[2]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""

CLEAR_WORK = """
-- KEYS: stream, attempts of each stage in turn   ARGV: group
-- Recreate the groups at once: an autoscaler that finds none gives up on the stream.
for i = 1, #KEYS, 2 do
  redis.call('DEL', KEYS[i], KEYS[i + 1])
  redis.call('XGROUP', 'CREATE', KEYS[i], ARGV[1], '0', 'MKSTREAM')
end
return #KEYS / 2
"""

ANNOUNCE = """
-- KEYS: replicas, expiry   ARGV: id, registration, ttl_ms
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now_ms + ARGV[3], ARGV[1])
return 1
"""

WITHDRAW = """
-- KEYS: replicas, expiry   ARGV: id
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""

REPLICAS = """
-- KEYS: replicas, expiry
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms)) do
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[1], id)
end
return redis.call('HVALS', KEYS[1])
"""

DEPTH = """
-- KEYS: stream   ARGV: group
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1])  -- an error if there is no group
return {redis.call('XLEN', KEYS[1]), pending.err and 0 or pending[1]}
"""

BEGIN = """
-- KEYS: stream, attempts   ARGV: group, consumer, entry
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not held or held[2] ~= ARGV[2] then return 0 end
redis.call('PERSIST', KEYS[2])
return redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
"""

RENEW = """
-- KEYS: stream   ARGV: group, consumer, entries...
local ours = {}
for i = 3, #ARGV do
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if held and held[2] == ARGV[2] then
    -- XCLAIM by the current owner resets the idle time; JUSTID leaves the delivery counter alone.
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    ours[#ours + 1] = ARGV[i]
  end
end
return ours
"""

EXPIRE = """
-- KEYS: stream   ARGV: group, consumer, entries...
for i = 3, #ARGV do
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if held and held[2] == ARGV[2] then
    -- Idle for a year: longer than any lease.
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', 31536000000, 'JUSTID')
  end
end
return 1
"""

FINISH = """
-- KEYS: stream, attempts[, result stream]   ARGV: group, entry[, task_id, epoch, body]
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
if KEYS[3] then
  redis.call('XADD', KEYS[3], '*', 'task_id', ARGV[3], 'epoch', ARGV[4], 'body', ARGV[5])
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
return 1
"""

BURY = """
-- KEYS: stream, attempts, dead[, result stream]
-- ARGV: group, entry, max_dead, stage, reason, task_id, epoch, body[, the result's same three]
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[3], '*', 'stage', ARGV[4], 'reason', ARGV[5],
  'task_id', ARGV[6], 'epoch', ARGV[7], 'body', ARGV[8])
if KEYS[4] then
  redis.call('XADD', KEYS[4], '*', 'task_id', ARGV[9], 'epoch', ARGV[10], 'body', ARGV[11])
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
return 1
"""

RELEASE = """
-- KEYS: stream, attempts   ARGV: group, consumer, entry, attempts to un-count
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not held or held[2] ~= ARGV[2] then return 0 end
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
local attempts = (redis.call('HGET', KEYS[2], ARGV[3]) or 0) - ARGV[4]
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
redis.call('HDEL', KEYS[2], ARGV[3])
if not entry then return 0 end
-- A new entry rather than a new owner: only that wakes a consumer blocked in XREADGROUP.
local id = redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
if attempts > 0 then redis.call('HSET', KEYS[2], id, attempts) end
return 1
"""
