-- A worker says that an agent's start() finished: it can take tasks. Why it last failed stays in its record.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  name           of the agent
-- ARGV[6]  incarnation    that the worker started
-- BUILDS   agent:{p}/{n}  pool:{p}:mailbox:{n}  pool:{p}:events
-- RETURNS  {"ok", tasks waiting in its mailbox} | {"stale"}
-- AGAIN    the same incarnation is confirmed again, without a second reply or event

local worker, name = ARGV[4], ARGV[5]
local key = agent_key(name)
local owner, incarnation, status, reply_to =
  unpack(redis.call('HMGET', key, 'process_id', 'incarnation', 'status', 'reply_to'))
if owner ~= worker or incarnation ~= ARGV[6] then
  return {'stale'}
end
local waiting = redis.call('ZCARD', POOL .. ':mailbox:' .. name)
if status == 'placed' then
  redis.call('HSET', key, 'status', 'idle', 'started_at', now, 'failures', 0, 'crashes', 0,
    'crashes_alone', 0, 'reply_to', '')
  note('agent.started', name, worker)
  if reply_to ~= '' then
    publish(reply_to, to_json({type = 'agent_ready', agent_id = pool .. '/' .. name, process_id = worker}))
  end
end
return {'ok', waiting}
