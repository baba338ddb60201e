-- Record the heartbeats of agents that have one of their own.
--
-- @include base workers
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5…] names          of healthy agents, at most 100
-- BUILDS   agent:{p}/{n}
-- RETURNS  {"ok", recorded}
-- AGAIN    the same, with a later time

local recorded = 0
for i = 5, #ARGV do
  local key = agent_key(ARGV[i])
  if redis.call('HGET', key, 'process_id') == ARGV[4] then
    redis.call('HSET', key, 'last_heartbeat', now)
    recorded = recorded + 1
  end
end
return {'ok', recorded}
