-- End an agent for good; what waits in its mailbox fails, and its slot goes to the next that waits.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  name           of the agent
-- ARGV[5]  detail         why, for events and for those who wait
-- ARGV[6]  idle_since     empty, or: only if it was last used at this time, is idle and has an empty mailbox
-- ARGV[7]  operation      empty, or: only if this request made it and it is not running yet (a withdrawal)
-- ARGV[8]  even_running   "1": a withdrawal that ends it also when it runs
-- BUILDS   agent:{p}/{n}  process:{w}  pool:{p}:worker:{w}:agents  pool:{p}:mailbox:{n}  pool:{p}:snapshot:{n}
--          pool:{p}:ended:{n}  pool:{p}:history  pool:{p}:pending  pool:{p}:events  tenant:{p}:{t}:agents
--          pool:{p}:leases  task:{p}/{id}  pool:{p}:attempts  pool:{p}:audit  pool:{p}:children:{id}  pool:{p}:due
--          pool:{p}:errors:{id}  pool:{p}:followed  pool:{p}:held  pool:{p}:key:{digest}  pool:{p}:lane:{lane}:{t}
--          pool:{p}:lanes  pool:{p}:processes  pool:{p}:tenants  pool:{p}:trail:{id}  pool:{p}:turns:{lane}
--          pool:{p}:worker:{w}:cancels  pool:{p}:worker:{w}:runs  pool:{p}:worker:{w}:tasks
--          pool:{p}:worker:{w}:waits  tenant:{p}:{t}:mail  tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits
--          tenant:{p}:{t}:usage
-- RETURNS  {"ok", worker or ""} | {"more"} | {"ended"} | {"unknown"} | {"kept", status, worker}
-- AGAIN    "ended" for an hour after the end, then "unknown". "more": call again

local name, detail = ARGV[4], ARGV[5]
local key = agent_key(name)
local status, last_used, operation, worker =
  unpack(redis.call('HMGET', key, 'status', 'last_used_at', 'operation', 'process_id'))
if redis.call('EXISTS', key) == 0 then
  local known, ended_operation, incarnation = read_ending(name)
  if ARGV[7] ~= '' and ended_operation ~= ARGV[7] then
    -- The withdrawn request may be on its way still: it shall be refused when it comes.
    leave_ending(name, 'terminated', ARGV[7], incarnation or 0, detail)
  end
  return {known and 'ended' or 'unknown'}
end
if ARGV[6] ~= '' and (status ~= 'idle' or last_used ~= ARGV[6]
    or redis.call('EXISTS', POOL .. ':mailbox:' .. name) == 1) then
  return {'kept', status, worker}
end
if ARGV[7] ~= '' and (operation ~= ARGV[7] or (ARGV[8] ~= '1' and status ~= 'pending' and status ~= 'placed')) then
  return {'kept', status, worker}
end
redis.call('HSET', key, 'ending', '1')
if not empty_mailbox(name, 100, 'agent_terminated', detail) then
  return {'more'}
end
worker = end_agent(name, 'terminated', detail)
if worker then
  fill(worker, 100)
end
return {'ok', worker or ''}
