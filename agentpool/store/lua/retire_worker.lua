-- A worker that holds nothing any more leaves for good.
--
-- @include base workers
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  reason         for the record
-- BUILDS   process:{w}  pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs
--          pool:{p}:worker:{w}:cancels  pool:{p}:processes  pool:{p}:workers  pool:{p}:starting  pool:{p}:draining
--          pool:{p}:lost  pool:{p}:history  pool:{p}:events  pool:{p}:served  pool:{p}:worker:{w}:waits
-- RETURNS  {"ok"} | {"busy", agents, tasks} | {"gone"}; also "gone" for one that never registered: it is reaped
-- AGAIN    "gone"

local worker = ARGV[4]
local status = redis.call('HGET', process_key(worker), 'status')
if status ~= 'ready' and status ~= 'draining' then
  return {'gone'}
end
local agents = redis.call('SCARD', held(worker, 'agents'))
local tasks = redis.call('ZCARD', held(worker, 'tasks')) + redis.call('ZCARD', held(worker, 'runs'))
if agents + tasks > 0 then
  return {'busy', agents, tasks}
end
forget_worker(worker, 'stopped', ARGV[5])
note('worker.stopped', '', worker, ARGV[5])
tell_leader('worker stopped')
return {'ok'}
