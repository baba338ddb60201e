-- Give a pool's lock back, if it is still held with this token.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}     HASH
-- ARGV[4]  lock         its name: leader, placement
-- ARGV[5]  token        as it was taken
-- BUILDS   lock:pool:{p}:{lock}
-- RETURNS  {"ok"} | {"gone"}
-- AGAIN    "gone", and nothing changes

local key = prefix .. 'lock:pool:' .. pool .. ':' .. ARGV[4]
if redis.call('GET', key) ~= ARGV[5] then
  return {'gone'}
end
redis.call('DEL', key)
if ARGV[4] == 'leader' then
  redis.call('HSET', POOL, 'leader', '')
  tell_leader('leader resigned')
end
return {'ok'}
