-- A worker's heartbeat; the answer tells it whether it missed anything.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  loop_lag_ms    age of the oldest turn of its essential loops
-- ARGV[6]  memory_bytes   private memory, or empty when not measured this time
-- ARGV[7]  cpu_percent    of one core
-- BUILDS   process:{w}    pool:{p}:workers  pool:{p}:lanes
-- RETURNS  {"ok", version, status, lanes with waiting tasks} | {"gone"} when it was given up: it must exit
-- AGAIN    the same, with a later time

local key = prefix .. 'process:' .. ARGV[4]
local status, version = unpack(redis.call('HMGET', key, 'status', 'version'))
if not status or status == 'lost' then
  return {'gone'}
end
redis.call('ZADD', POOL .. ':workers', 'XX', now, ARGV[4])
redis.call('HSET', key, 'last_beat', now, 'loop_lag_ms', ARGV[5], 'cpu_percent', ARGV[7])
if ARGV[6] ~= '' then
  redis.call('HSET', key, 'memory_bytes', ARGV[6])
end
return {'ok', tonumber(version), status, redis.call('ZCARD', POOL .. ':lanes')}
