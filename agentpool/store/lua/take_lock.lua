-- Take a pool's lock, or extend it, for work of several steps.
--
-- @include base locks
-- @flags allow-oom
-- KEYS[1]  pool:{p}     HASH
-- ARGV[4]  lock         its name: leader, placement
-- ARGV[5]  holder       who asks
-- ARGV[6]  lease_ms     until it lapses by itself
-- BUILDS   lock:pool:{p}:{lock}
-- RETURNS  {"taken", token} | {"held", token of the holder}
-- AGAIN    the holder gets the same token and a new lease

local token, other = take(ARGV[4], ARGV[5], ARGV[6])
if token then
  return {'taken', token}
end
return {'held', other}
