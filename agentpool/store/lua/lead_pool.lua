-- A master's turn: lead the pool if nobody else does. Also notices that no master had a turn for a while (Redis was
-- away, or every master was frozen), or that the server started anew, and then holds all reaping by time for one
-- heartbeat timeout. In that time workers tell what the server may have lost.
--
-- @include base locks
-- @flags allow-oom
-- KEYS[1]  pool:{p}     HASH
-- ARGV[4]  master       id of who asks
-- ARGV[5]  lease_ms     after which another may lead
-- ARGV[6]  gap_ms       time without a turn of any master that sets the hold
-- ARGV[7]  hold_ms      how long the hold lasts
-- BUILDS   lock:pool:{p}:leader  pool:{p}:events
-- RETURNS  {"leads", token, "1" when newly, run} | {"follows", token of the leader, ms until its lease ends, run}: the
--          id of the server's run
-- AGAIN    the leader keeps its token and gets a new lease

local tick, before_run = unpack(redis.call('HMGET', POOL, 'tick', 'server_run'))
local run = server_run()
if now - (tonumber(tick) or 0) > tonumber(ARGV[6]) then
  redis.call('HSET', POOL, 'hold_until', now + ARGV[7])
end
if run ~= before_run then
  redis.call('HSET', POOL, 'server_run', run)
  if before_run then
    redis.call('HSET', POOL, 'restarted_at', now, 'unsure_until', now + ARGV[7], 'hold_until', now + ARGV[7])
    note('server.restarted', '', '', ARGV[4])
  end
end
redis.call('HSET', POOL, 'tick', now)
local before = redis.call('GET', prefix .. 'lock:pool:' .. pool .. ':leader')
local token, other = take('leader', ARGV[4], ARGV[5])
if not token then
  return {'follows', other, redis.call('PTTL', prefix .. 'lock:pool:' .. pool .. ':leader'), run}
end
if token ~= before then
  redis.call('HSET', POOL, 'leader', ARGV[4])
  note('leader.elected', '', '', ARGV[4])
end
return {'leads', token, token ~= before and '1' or '0', run}
