-- A worker is up: it takes its place in the index of free slots, and the agents that wait.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  secret         of its order
-- ARGV[6]  capacity       slots
-- ARGV[7…] field, value   pairs of the process hash
-- BUILDS   process:{w}  pool:{p}:workers  pool:{p}:starting  pool:{p}:processes  pool:{p}:pending
--          pool:{p}:worker:{w}:agents  agent:{p}/{n}  pool:{p}:events  pool:{p}:worker:{w}:tasks
-- RETURNS  {"ok", version} | {"gone"} when it was not ordered, or was given up
-- AGAIN    the same; a worker that drains by now stays draining

local worker = ARGV[4]
local key = process_key(worker)
local status, secret = unpack(redis.call('HMGET', key, 'status', 'secret'))
if not status or status == 'lost' or secret ~= ARGV[5] then
  return {'gone'}
end
redis.call('ZADD', POOL .. ':workers', now, worker)
if status == 'ordered' or status == 'starting' then
  redis.call('HSET', key, 'status', 'ready', 'capacity', ARGV[6], 'started_at', now, unpack(ARGV, 7))
  redis.call('ZREM', POOL .. ':starting', worker)
  note('worker.ready', '', worker)
  fill(worker, 100)
  tell_leader('worker ready')
end
return {'ok', redis.call('HGET', key, 'version')}
