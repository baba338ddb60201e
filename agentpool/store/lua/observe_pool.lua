-- What the leader decides from, and what stats show: one consistent read that does not grow with the workers.
--
-- @include base
-- @flags no-writes
-- KEYS[1]  pool:{p}       HASH
-- BUILDS   pool:{p}:workers  pool:{p}:starting  pool:{p}:draining  pool:{p}:processes  pool:{p}:pending
--          pool:{p}:lanes  pool:{p}:lane:{type}:{t}  pool:{p}:leases  pool:{p}:lost
-- RETURNS  {now_ms, workers, starting, draining, ready, pending, due, waiting tasks, running tasks,
--          free slots, lost}
-- AGAIN    reads only

local function size(index)
  return redis.call('ZCARD', POOL .. ':' .. index)
end
local tasks, free = 0, 0
for _, lane in ipairs(redis.call('ZRANGE', POOL .. ':lanes', 0, 999)) do
  tasks = tasks + redis.call('ZCARD', POOL .. ':lane:' .. lane)
end
local ready = redis.call('ZREVRANGEBYSCORE', POOL .. ':processes', '+inf', 1, 'WITHSCORES', 'LIMIT', 0, 1000)
for i = 2, #ready, 2 do
  free = free + ready[i]
end
return {now, size('workers'), size('starting'), size('draining'),
  size('processes'), size('pending'),
  redis.call('ZCOUNT', POOL .. ':pending', '-inf', now), tasks, redis.call('HLEN', POOL .. ':leases'), free,
  size('lost')}
