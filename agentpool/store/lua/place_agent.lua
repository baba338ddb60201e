-- Register a pinned agent and place it on the worker that the pool's strategy prefers, or let it wait.
--
-- @include base workers tenants tasks agents
-- KEYS[1]  pool:{p}      HASH
-- ARGV[4]  name          of the agent, given or generated
-- ARGV[5]  agent_type
-- ARGV[6]  tenant
-- ARGV[7]  project       may be empty
-- ARGV[8]  max_idle_ms   0: never idle out
-- ARGV[9]  heartbeat_ms  0: none of its own
-- ARGV[10] reply_to      channel that is told when the agent runs or ends
-- ARGV[11] operation     id of this request
-- BUILDS   pool:{p}:types  pool:{p}:processes  pool:{p}:pending  pool:{p}:worker:{w}:agents  pool:{p}:events
--          agent:{p}/{n}  process:{w}  tenant:{p}:{t}:agents  pool:{p}:limits  pool:{p}:labels  pool:{p}:ended:{n}
--          pool:{p}:worker:{w}:tasks  pool:{p}:affinity  pool:{p}:served
-- RETURNS  {"placed", worker} | {"pending"} | {"unknown_pool"} | {"unknown_type", type…} | {"duplicate"}
--          | {"full", depth, bound} | {"limited", code, limit, retry_ms} | {"unmatched", label, labels of hosts…}
--          | {"ended", how} when the agent of this very operation has ended
-- AGAIN    the same operation gets the place that the first call found, or "ended"

local name, operation = ARGV[4], ARGV[11]
if not pool_exists() then
  return {'unknown_pool'}
end
if redis.call('HEXISTS', POOL .. ':types', ARGV[5]) == 0 then
  return {'unknown_type', unpack(redis.call('HKEYS', POOL .. ':types'))}
end
local key = agent_key(name)
local known, worker = unpack(redis.call('HMGET', key, 'operation', 'process_id'))
if known then
  if known ~= operation then
    return {'duplicate'}
  end
  return worker ~= '' and {'placed', worker} or {'pending'}
end
local status, ended_operation, last_incarnation, detail = read_ending(name)
if ended_operation == operation then
  return {'ended', status .. ' ' .. detail}
end
local limits = limits_of(ARGV[6])
if limits.agents > 0 and redis.call('SCARD', tenant_key(ARGV[6], 'agents')) >= limits.agents then
  return {'limited', 'TOTAL_LIMIT', limits.agents, 0}
end
local labels = redis.call('HGET', POOL, 'labels:' .. ARGV[5]) or ''
if labels ~= '' and unmatched(labels) then
  return {'unmatched', unmatched(labels), unpack(redis.call('HVALS', POOL .. ':labels'))}
end
local has_room = #workers_with_room(1) > 0
local bound = tonumber(redis.call('HGET', POOL, 'max_pending')) or 10000
local depth = redis.call('ZCARD', POOL .. ':pending')
if not has_room and depth >= bound then
  return {'full', depth, bound}
end
redis.call('HSET', key, 'agent_id', pool .. '/' .. name, 'pool_name', pool, 'agent_type', ARGV[5], 'status', 'pending',
  'process_id', '', 'tenant', ARGV[6], 'project', ARGV[7], 'incarnation', last_incarnation or 0,
  'max_idle_ms', ARGV[8], 'heartbeat_ms', ARGV[9], 'spawned_at', now, 'last_used_at', now, 'run_count', 0, 'failures', 0, 'crashes', 0,
  'task_id', '', 'last_error', '', 'reply_to', ARGV[10], 'operation', operation)
redis.call('SADD', prefix .. 'tenant:' .. pool .. ':' .. ARGV[6] .. ':agents', name)
redis.call('DEL', POOL .. ':ended:' .. name)
note('agent.spawned', name, '', ARGV[5])
worker = place_or_queue(name)
return worker and {'placed', worker} or {'pending'}
