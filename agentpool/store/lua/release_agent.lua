-- A draining worker hands an agent over: it is placed elsewhere, or waits for a place.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker         that gives it up
-- ARGV[5]  name           of the agent
-- ARGV[6]  incarnation    that the worker runs
-- ARGV[7]  snapshot       what the agent wants to find again, or empty
-- BUILDS   agent:{p}/{n}  process:{w}  pool:{p}:worker:{w}:agents  pool:{p}:snapshot:{n}  pool:{p}:pending
--          pool:{p}:processes  pool:{p}:events  pool:{p}:affinity  pool:{p}:served  pool:{p}:worker:{w}:tasks
-- RETURNS  {"placed", worker} | {"pending"} | {"stale"} | {"busy", task}
-- AGAIN    "stale": the first call took the agent off the worker

local worker, name = ARGV[4], ARGV[5]
local key = agent_key(name)
local owner, incarnation, task = unpack(redis.call('HMGET', key, 'process_id', 'incarnation', 'task_id'))
if owner ~= worker or incarnation ~= ARGV[6] then
  return {'stale'}
end
if task ~= '' then
  return {'busy', task}
end
if ARGV[7] ~= '' then
  redis.call('SET', POOL .. ':snapshot:' .. name, ARGV[7])
end
redis.call('SREM', held(worker, 'agents'), name)
rescore(worker)
note('agent.moved', name, worker)
local target = place_or_queue(name)
return target and {'placed', target} or {'pending'}
