-- Let every queue have its turn, and the pool know its fences and how many tasks wait.
--
-- @include base workers tenants
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] queue          all that have tasks or a turn, `lane:tenant` each, at most 100
-- BUILDS   pool:{p}:held  pool:{p}:lane:{lane}:{t}  pool:{p}:lanes  pool:{p}:tenants  pool:{p}:turns:{lane}
-- RETURNS  {"ok"} | {"moved"} when there are other queues than these by now, and they were not counted
-- AGAIN    the same

local queued, turns = 0, 0
for i = 4, #ARGV do
  local lane, tenant = string.match(ARGV[i], '^(.*):([^:]*)$')
  local waiting = redis.call('ZCARD', lane_key(lane, tenant))
  queued = queued + waiting
  if waiting == 0 then
    redis.call('ZREM', POOL .. ':turns:' .. lane, tenant)
  else
    add_lane(lane)
    if redis.call('SISMEMBER', POOL .. ':held', tenant) == 1 then
      redis.call('ZREM', POOL .. ':turns:' .. lane, tenant)
    else
      enlist(lane, tenant)
      turns = turns + 1
    end
  end
end
for _, lock in ipairs({'leader', 'placement'}) do
  local fence = string.match(redis.call('GET', prefix .. 'lock:pool:' .. pool .. ':' .. lock) or '', '^%d+')
  local field = lock == 'leader' and 'fence' or 'placement_fence'
  if fence and tonumber(fence) > (tonumber(redis.call('HGET', POOL, field)) or 0) then
    redis.call('HSET', POOL, field, fence)
  end
end
for _, lane in ipairs(lanes()) do
  turns = turns - redis.call('ZCARD', POOL .. ':turns:' .. lane)
end
if turns ~= 0 then
  return {'moved'}
end
redis.call('HSET', POOL, 'queued', queued)
return {'ok'}
