-- The holder of a lease records the task's outcome.
--
-- @include base workers tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  task           id
-- ARGV[6]  agent          name of the pinned agent that ran it, or empty
-- ARGV[7]  outcome        JSON
-- BUILDS   task:{p}/{id}  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs  pool:{p}:worker:{w}:cancels
--          pool:{p}:leases  process:{w}  agent:{p}/{n}  pool:{p}:mailbox:{n}  pool:{p}:lanes  pool:{p}:processes
--          pool:{p}:pending  tenant:{p}:{t}:tasks
-- RETURNS  {"ok", tasks in the agent's mailbox, lanes that hold tasks} | {"stale"} when the lease is another's
-- AGAIN    "ok" when this very outcome was recorded

local worker, id, name, outcome = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local waiting = name ~= '' and redis.call('ZCARD', POOL .. ':mailbox:' .. name) or 0
local answer = {'ok', waiting, redis.call('ZCARD', POOL .. ':lanes')}
if redis.call('HGET', POOL .. ':leases', id) ~= worker then
  return redis.call('GET', task_key(id)) == outcome and answer or {'stale'}
end
finish_task(id, outcome, result_ttl())
end_lease(worker, id)
if name == '' then
  fill(worker, 100)
  return answer
end
local agent = agent_key(name)
local owner, task = unpack(redis.call('HMGET', agent, 'process_id', 'task_id'))
if owner == worker and task == id then
  redis.call('HSET', agent, 'status', 'idle', 'task_id', '', 'last_used_at', now)
  redis.call('HINCRBY', agent, 'run_count', 1)
end
rescore(worker)
return answer
