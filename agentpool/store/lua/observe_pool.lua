-- What the leader decides from, and what stats show: one consistent read that does not grow with workers or tasks.
--
-- @include base workers tenants
-- @flags no-writes
-- KEYS[1]  pool:{p}       HASH
-- BUILDS   pool:{p}:workers  pool:{p}:starting  pool:{p}:draining  pool:{p}:processes  pool:{p}:pending
--          pool:{p}:lanes  pool:{p}:lane:{lane}:{t}  pool:{p}:turns:{lane}  pool:{p}:leases  pool:{p}:lost
--          pool:{p}:suspects  pool:{p}:dead  pool:{p}:limits  tenant:{p}:{t}:tasks
--          tenant:{p}:{t}:waits  tenant:{p}:{t}:tokens  tenant:{p}:{t}:requests  tenant:{p}:{t}:usage
-- RETURNS  {now_ms, workers, starting, draining, ready, pending, due, waiting tasks, of these runnable ones as far as
--          they matter, running tasks, free slots, lost, delayed tasks, dead letters}
-- AGAIN    reads only

local TENANTS = 100

local function size(index)
  return redis.call('ZCARD', POOL .. ':' .. index)
end

-- Tasks that could begin if there were room: of the first tenants of each lane what their limits allow, of others one.
local function runnable()
  local tasks, left = size('suspects'), {}
  for _, lane in ipairs(lanes()) do
    for _, tenant in ipairs(redis.call('ZRANGE', POOL .. ':turns:' .. lane, 0, TENANTS - 1)) do
      left[tenant] = left[tenant] or allowance(tenant)
      local count = math.min(redis.call('ZCARD', lane_key(lane, tenant)), left[tenant])
      tasks, left[tenant] = tasks + count, left[tenant] - count
    end
    tasks = tasks + math.max(0, redis.call('ZCARD', POOL .. ':turns:' .. lane) - TENANTS)
  end
  return tasks
end

local free = 0
local ready = redis.call('ZREVRANGEBYSCORE', POOL .. ':processes', '+inf', 1, 'WITHSCORES', 'LIMIT', 0, 1000)
for i = 2, #ready, 2 do
  free = free + ready[i]
end
return {now, size('workers'), size('starting'), size('draining'),
  size('processes'), size('pending'), redis.call('ZCOUNT', POOL .. ':pending', '-inf', now),
  (tonumber(redis.call('HGET', POOL, 'queued')) or 0) + size('suspects'), runnable(),
  redis.call('HLEN', POOL .. ':leases'), free, size('lost'),
  tonumber(redis.call('HGET', POOL, 'delayed')) or 0, size('dead')}
