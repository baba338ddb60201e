-- A master's beat: it lives, looks after the pool's workers of its host, and says what room its host has.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  master
-- ARGV[5]  session        of the process that asks; while another one beats under the same id, it is refused
-- ARGV[6]  replaces       session of an earlier process that is known to be gone, or empty
-- ARGV[7]  alive_ms       time after its last beat in which a process may still live
-- ARGV[8]  schema         of the release that asks
-- ARGV[9]  host_id
-- ARGV[10] labels         of the host's workers, as words
-- ARGV[11…] field, value  pairs of the host
-- BUILDS   pool:{p}:hosts  pool:{p}:host:{m}  pool:{p}:labels  pool:{p}:events
-- RETURNS  {"ok", time of the last scaling or 0} | {"too_old", oldest schema that may take part, release of the pool} | {"taken", host of the other}
-- AGAIN    the same, with a later time

local master = ARGV[4]
local key = POOL .. ':host:' .. master
local session, host = unpack(redis.call('HMGET', key, 'session', 'host'))
local schema_min, release, scaled_at = unpack(redis.call('HMGET', POOL, 'schema_min', 'release', 'scaled_at'))
if (tonumber(schema_min) or 0) > tonumber(ARGV[8]) then
  return {'too_old', schema_min, release or ''}
end
local beat = tonumber(redis.call('ZSCORE', POOL .. ':hosts', master)) or 0
if session and session ~= ARGV[5] and session ~= ARGV[6] and now - beat < tonumber(ARGV[7]) then
  return {'taken', host}
end
if session ~= ARGV[5] then
  redis.call('HSET', key, 'started_at', now, 'upgrade', '')
  note('host.joined', '', '', master)
end
redis.call('ZADD', POOL .. ':hosts', now, master)
redis.call('HSET', key, 'master', master, 'pool_name', pool, 'session', ARGV[5], 'schema', ARGV[8], 'last_beat', now,
  'host_id', ARGV[9], 'labels', ARGV[10], unpack(ARGV, 11))
redis.call('HSET', POOL .. ':labels', ARGV[9], ARGV[10])
return {'ok', tonumber(scaled_at) or 0}
