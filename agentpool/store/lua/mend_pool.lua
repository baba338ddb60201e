-- Let the pool know its fences and how many tasks wait, in the queues that have a turn and in those of held tenants. It
-- looks at all of them, which is for repairs only.
--
-- @include base workers tenants
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- BUILDS   pool:{p}:held  pool:{p}:lane:{lane}:{t}  pool:{p}:lanes  pool:{p}:turns:{lane}
-- RETURNS  {"ok"}
-- AGAIN    the same

local queued = 0
local held = redis.call('SMEMBERS', POOL .. ':held')
for _, lane in ipairs(lanes()) do
  for _, tenants in ipairs({redis.call('ZRANGE', POOL .. ':turns:' .. lane, 0, -1), held}) do
    for _, tenant in ipairs(tenants) do
      queued = queued + redis.call('ZCARD', lane_key(lane, tenant))
    end
  end
end
redis.call('HSET', POOL, 'queued', queued)
for _, lock in ipairs({'leader', 'placement'}) do
  local fence = string.match(redis.call('GET', prefix .. 'lock:pool:' .. pool .. ':' .. lock) or '', '^%d+')
  local field = lock == 'leader' and 'fence' or 'placement_fence'
  if fence and tonumber(fence) > (tonumber(redis.call('HGET', POOL, field)) or 0) then
    redis.call('HSET', POOL, field, fence)
  end
end
return {'ok'}
