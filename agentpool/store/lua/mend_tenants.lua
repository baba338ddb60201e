-- Let the sets of tenants hold these agents and tasks, or not, as they are the tenants'.
--
-- @include base workers tenants tasks
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] entry          at most 100: `tenant kind id`, the kind being agents, tasks, waits or delayed
-- BUILDS   agent:{p}/{n}  pool:{p}:due  pool:{p}:held  pool:{p}:lane:{lane}:{t}  pool:{p}:lanes  pool:{p}:leases
--          pool:{p}:tenants  pool:{p}:turns:{lane}  pool:{p}:worker:{w}:waits  process:{w}  task:{p}/{id}
--          tenant:{p}:{t}:mail  tenant:{p}:{t}:usage
-- RETURNS  {"ok"}
-- AGAIN    the same

local function belongs(tenant, kind, id)
  if kind == 'agents' then
    return redis.call('HGET', agent_key(id), 'tenant') == tenant
  end
  local head = read_head(id)
  if not head or head.tenant ~= tenant then
    return false
  elseif kind == 'delayed' then
    return redis.call('ZSCORE', POOL .. ':due', 'start ' .. id)
  end
  local lease = read_lease(id)
  return lease and (kind == 'tasks' or redis.call('SISMEMBER', held(lease.worker, 'waits'), id) == 1)
end

for i = 4, #ARGV do
  local tenant, kind, id = string.match(ARGV[i], '^(%S+) (%S+) (%S+)$')
  if belongs(tenant, kind, id) then
    redis.call('SADD', tenant_key(tenant, kind), id)
  else
    redis.call('SREM', tenant_key(tenant, kind), id)
    if kind == 'tasks' then
      let_go(tenant)
    end
  end
end
return {'ok'}
