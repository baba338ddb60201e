-- A worker says that an agent failed: to start, in background(), or its health check.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  name           of the agent
-- ARGV[6]  incarnation    that failed
-- ARGV[7]  failures       in a row, this one included
-- ARGV[8]  error          as text
-- ARGV[9]  final          "1": its restarts are given up and the agent ends; "0": the worker will try again
-- BUILDS   agent:{p}/{n}  process:{w}  pool:{p}:worker:{w}:agents  pool:{p}:mailbox:{n}  pool:{p}:snapshot:{n}
--          pool:{p}:ended:{n}  pool:{p}:history  pool:{p}:events  tenant:{p}:{t}:agents  pool:{p}:attempts
--          pool:{p}:audit  pool:{p}:children:{id}  pool:{p}:due  pool:{p}:errors:{id}  pool:{p}:followed
--          pool:{p}:held  pool:{p}:key:{digest}  pool:{p}:lane:{lane}:{t}  pool:{p}:lanes  pool:{p}:leases
--          pool:{p}:pending  pool:{p}:processes  pool:{p}:tenants  pool:{p}:trail:{id}  pool:{p}:turns:{lane}
--          pool:{p}:worker:{w}:cancels  pool:{p}:worker:{w}:runs  pool:{p}:worker:{w}:tasks
--          pool:{p}:worker:{w}:waits  task:{p}/{id}  tenant:{p}:{t}:mail  tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits
--          tenant:{p}:{t}:usage
-- RETURNS  {"ok"} | {"more"} | {"stale"}
-- AGAIN    the same, with another event; after the end, "stale". "more": call again, its mailbox held more than one call may fail

local worker, name, detail = ARGV[4], ARGV[5], ARGV[8]
local key = agent_key(name)
local owner, incarnation, status = unpack(redis.call('HMGET', key, 'process_id', 'incarnation', 'status'))
if owner ~= worker or incarnation ~= ARGV[6] then
  return {'stale'}
end
if ARGV[9] == '1' then
  redis.call('HSET', key, 'ending', '1')
  if not empty_mailbox(name, 100, 'agent_terminated', detail) then
    return {'more'}
  end
  end_agent(name, 'failed', detail)
  fill(worker, 100)
  return {'ok'}
end
redis.call('HSET', key, 'failures', ARGV[7], 'last_error', detail)
if status ~= 'active' then
  redis.call('HSET', key, 'status', 'placed')
end
if status == 'idle' or status == 'active' then
  note('agent.broke', name, worker, detail)
else
  note('agent.start_failed', name, worker, detail)
end
return {'ok'}
