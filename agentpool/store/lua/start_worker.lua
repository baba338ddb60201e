-- The master forked the worker that was ordered: write down who it is, so that a later master can find it.
--
-- @include base workers
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  secret         of the order
-- ARGV[6…] field, value   pairs of the process hash: pid, start_time, boot_id, host_id, …
-- BUILDS   process:{w}    pool:{p}:events
-- RETURNS  {"ok"} | {"gone"}
-- AGAIN    the same; a worker that registered in the meantime stays ready

local key = process_key(ARGV[4])
local status, secret = unpack(redis.call('HMGET', key, 'status', 'secret'))
if not status or status == 'lost' or secret ~= ARGV[5] then
  return {'gone'}
end
redis.call('HSET', key, unpack(ARGV, 6))
if status == 'ordered' then
  redis.call('HSET', key, 'status', 'starting')
  note('worker.starting', '', ARGV[4])
end
return {'ok'}
