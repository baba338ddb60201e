-- A host's master leaves, or the leader takes a host off the list whose master is silent.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  master
-- ARGV[5]  token          of the leader; empty: the master leaves by itself
-- ARGV[6]  silent_ms      with a token: time since its last beat after which it is taken off
-- BUILDS   pool:{p}:hosts  pool:{p}:host:{m}  pool:{p}:labels  pool:{p}:events  lock:pool:{p}:leader
-- RETURNS  {"ok"} | {"fenced"} | {"alive"} | {"gone"}
-- AGAIN    "gone"

local master = ARGV[4]
local beat = tonumber(redis.call('ZSCORE', POOL .. ':hosts', master))
if ARGV[5] ~= '' then
  if not holds('leader', ARGV[5]) then
    return {'fenced'}
  end
  if beat and now - beat < tonumber(ARGV[6]) then
    return {'alive'}
  end
end
local key = POOL .. ':host:' .. master
local host_id = redis.call('HGET', key, 'host_id')
if host_id then
  redis.call('HDEL', POOL .. ':labels', host_id)
end
redis.call('ZREM', POOL .. ':hosts', master)
if redis.call('DEL', key) == 0 then
  return {'gone'}
end
note('host.left', '', '', master)
return {'ok'}
