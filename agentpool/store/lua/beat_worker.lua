-- A worker's heartbeat; the answer tells it whether it missed anything.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  loop_lag_ms    age of the oldest turn of its essential loops
-- ARGV[6]  memory_bytes   private memory, or empty when not measured this time
-- ARGV[7]  cpu_percent    of one core
-- ARGV[8]  warm           `<type>/<tenant>` words of its warm agents
-- ARGV[9]  listens        1 while commands reach it, else 0
-- ARGV[10] ahead          quick tasks by type that it may be given beyond its slots
-- BUILDS   process:{w}    pool:{p}:workers  pool:{p}:hosts  pool:{p}:lanes  pool:{p}:turns:{lane}  pool:{p}:suspects  pool:{p}:due
-- RETURNS  {"ok", version, status, tenants with a turn, ms until the next timer or -1, last beat of its master or 0} | {"gone"} when it was given up: it must exit
-- AGAIN    the same, with a later time

local key = prefix .. 'process:' .. ARGV[4]
local status, version, master = unpack(redis.call('HMGET', key, 'status', 'version', 'master'))
if not status or status == 'lost' then
  return {'gone'}
end
redis.call('ZADD', POOL .. ':workers', 'XX', now, ARGV[4])
redis.call('HSET', key, 'last_beat', now, 'loop_lag_ms', ARGV[5], 'cpu_percent', ARGV[7],
  'warm', ARGV[8], 'listens', ARGV[9], 'ahead', ARGV[10])
if ARGV[6] ~= '' then
  redis.call('HSET', key, 'memory_bytes', ARGV[6])
end
local turns = redis.call('ZCARD', POOL .. ':suspects')
for _, lane in ipairs(redis.call('SMEMBERS', POOL .. ':lanes')) do
  turns = turns + redis.call('ZCARD', POOL .. ':turns:' .. lane)
end
local next_due = redis.call('ZRANGE', POOL .. ':due', 0, 0, 'WITHSCORES')[2]
local master_beat = redis.call('ZSCORE', POOL .. ':hosts', master or '')
return {'ok', tonumber(version), status, turns, next_due and math.max(0, math.ceil(next_due - now)) or -1,
  tonumber(master_beat) or 0}
