-- Change limits of a tenant while the pool runs; they stand above the configuration.
--
-- @include base workers tenants
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  tenant
-- ARGV[5]  words          `name=value` of those that are set live, all of them; empty: as configured
-- BUILDS   pool:{p}:limits  pool:{p}:held  pool:{p}:lanes  pool:{p}:lane:{lane}:{t}  pool:{p}:turns:{lane}
--          pool:{p}:tenants  tenant:{p}:{t}:mail  agent:{p}/{n}  pool:{p}:processes  pool:{p}:events  pool:{p}:due
--          process:{w}  tenant:{p}:{t}:usage
-- RETURNS  {"ok"} | {"unknown_pool"}
-- AGAIN    the same, with another event

local tenant = ARGV[4]
if not pool_exists() then
  return {'unknown_pool'}
end
if ARGV[5] == '' then
  redis.call('HDEL', POOL .. ':limits', tenant)
else
  redis.call('HSET', POOL .. ':limits', tenant, ARGV[5])
end
note('tenant.limited', '', '', tenant .. ' ' .. ARGV[5])
if let_go(tenant) then
  tell_leader('room wanted')
  for _, found in ipairs(workers_with_room(10)) do
    command(found.worker, {type = 'wake'})
  end
end
return {'ok'}
