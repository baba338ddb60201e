-- Set a pool's floor and the number of workers wanted now; also lets stopped restarts go on.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}     HASH
-- ARGV[4]  workers      wanted
-- BUILDS   pool:{p}:events
-- RETURNS  {"ok"} | {"unknown_pool"} | {"outside", min, max}
-- AGAIN    the same

if not pool_exists() then
  return {'unknown_pool'}
end
local low, high = unpack(redis.call('HMGET', POOL, 'min_workers', 'max_workers'))
local wanted = tonumber(ARGV[4])
if wanted < tonumber(low) or wanted > tonumber(high) then
  return {'outside', tonumber(low), tonumber(high)}
end
redis.call('HSET', POOL, 'floor', wanted, 'desired', wanted, 'restarts', '', 'scaled_at', now)
note('pool.scaled', '', '', 'to ' .. wanted .. ' workers')
tell_leader('scaled')
return {'ok'}
