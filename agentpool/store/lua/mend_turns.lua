-- Let queues have their turn if something waits in them, and none otherwise.
--
-- @include base workers tenants
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] queue          `lane:tenant` each, at most 100
-- BUILDS   pool:{p}:held  pool:{p}:lane:{lane}:{t}  pool:{p}:lanes  pool:{p}:tenants  pool:{p}:turns:{lane}
-- RETURNS  {"ok"}
-- AGAIN    the same

for i = 4, #ARGV do
  local lane, tenant = string.match(ARGV[i], '^(.*):([^:]*)$')
  local waits = redis.call('ZCARD', lane_key(lane, tenant)) > 0
  if waits then
    add_lane(lane)
    enlist(lane, tenant)
  end
  if not waits or redis.call('SISMEMBER', POOL .. ':held', tenant) == 1 then
    redis.call('ZREM', POOL .. ':turns:' .. lane, tenant)
  end
end
return {'ok'}
