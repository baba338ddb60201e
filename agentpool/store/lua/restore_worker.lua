-- A worker says, after the server has started anew, that it lives and which agents it has: what was lost with the
-- server's latest writes is written again. Of two places of an agent the later one counts.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  status         ready, or draining when it leaves
-- ARGV[6]  fields         number of pairs of the process hash that follow, with the capacity
-- ARGV[7…] field, value   those pairs of the process hash; then of each agent, at most 50, eight words: name, type,
--                         incarnation, tenant, project, max_idle_ms, heartbeat_ms, and idle or placed; or '' when it
--                         stands in the worker's set but is not there, and then it starts as another incarnation
-- BUILDS   process:{w}  pool:{p}:workers  pool:{p}:starting  pool:{p}:draining  pool:{p}:processes  pool:{p}:pending
--          pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:tasks  agent:{p}/{n}  pool:{p}:ended:{n}
--          tenant:{p}:{t}:agents  pool:{p}:events  pool:{p}:affinity  pool:{p}:served
-- RETURNS  {"ok"} | {"gone"} when it was fenced | {"unknown_pool"} as long as no master has applied its settings
-- AGAIN    the same; what has been written again stays

local worker, status, last_field = ARGV[4], ARGV[5], 6 + 2 * ARGV[6]
local key = process_key(worker)
if not pool_exists() then
  return {'unknown_pool'}
end
local known = redis.call('HGET', key, 'status')
if known == 'lost' then
  return {'gone'}
end
if not known or known == 'ordered' or known == 'starting' then
  redis.call('HSET', key, 'process_id', worker, 'pool_name', pool, 'status', status, 'ordered_at', now,
    'started_at', now)
  for i = 7, last_field, 2 do
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
  redis.call('ZREM', POOL .. ':starting', worker)
  note('worker.restored', '', worker)
elseif known == 'ready' then
  redis.call('HSET', key, 'status', status)
end
if status == 'draining' then
  redis.call('ZADD', POOL .. ':draining', 'NX', now, worker)
end
redis.call('ZADD', POOL .. ':workers', now, worker)

-- Take an agent out of the set of the worker that had it before it moved here.
local function leave(owner, name)
  redis.call('SREM', held(owner, 'agents'), name)
  if redis.call('EXISTS', process_key(owner)) == 1 then
    command(owner, {type = 'terminate', agent_id = pool .. '/' .. name}, true)
    rescore(owner)
  end
end

-- The record of an agent of which nothing is known; false when it is known that it has ended.
local function write_again(i)
  local name, tenant = ARGV[i], ARGV[i + 3]
  local _, _, ended = read_ending(name)
  if (tonumber(ended) or -1) >= tonumber(ARGV[i + 2]) then
    return false
  end
  redis.call('HSET', agent_key(name), 'agent_id', pool .. '/' .. name, 'pool_name', pool, 'agent_type', ARGV[i + 1],
    'tenant', tenant, 'project', ARGV[i + 4], 'max_idle_ms', ARGV[i + 5], 'heartbeat_ms', ARGV[i + 6],
    'spawned_at', now, 'placed_at', now, 'last_used_at', now, 'run_count', 0, 'failures', 0, 'crashes', 0,
    'last_error', '', 'reply_to', '', 'operation', '')
  redis.call('SADD', tenant_key(tenant, 'agents'), name)
  return true
end

-- An agent that is here.
local function restore(i)
  local name, incarnation, state = ARGV[i], tonumber(ARGV[i + 2]), ARGV[i + 7]
  local agent = agent_key(name)
  local last, owner, doing = unpack(redis.call('HMGET', agent, 'incarnation', 'process_id', 'status'))
  if last and (tonumber(last) > incarnation or tonumber(last) == incarnation and owner == worker) then
    if owner == worker and tonumber(last) == incarnation and doing == 'placed' then
      redis.call('HSET', agent, 'status', state)
    end
    return
  end
  if not last and not write_again(i) then
    return
  end
  if owner and owner ~= '' and owner ~= worker then
    leave(owner, name)
  end
  redis.call('ZREM', POOL .. ':pending', name)
  redis.call('HSET', agent, 'status', state, 'process_id', worker, 'incarnation', incarnation, 'task_id', '')
  redis.call('SADD', held(worker, 'agents'), name)
  note('agent.restored', name, worker)
end

-- An agent that should be here and is not: it may have run elsewhere since, so it gets an incarnation above that.
local function begin_anew(name)
  local agent = agent_key(name)
  if redis.call('HGET', agent, 'process_id') == worker then
    redis.call('SREM', held(worker, 'agents'), name)
    rescore(worker)
    place_or_queue(name)
  end
end

for i = last_field + 1, #ARGV, 8 do
  if ARGV[i + 7] == '' then
    begin_anew(ARGV[i])
  else
    restore(i)
  end
end
redis.call('HINCRBY', key, 'version', 1)
rescore(worker)
return {'ok'}
