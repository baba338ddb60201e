-- Pinned agents: placed, waiting, ended. Needs base.lua, workers.lua, tenants.lua and tasks.lua.

-- Let an agent wait for a place, from `due` on.
local function queue_agent(name, due)
  redis.call('HSET', agent_key(name), 'status', 'pending', 'process_id', '', 'task_id', '')
  redis.call('ZADD', POOL .. ':pending', due, name)
  note('agent.waiting', name, '')
end

-- Until when an agent of this type may not be placed, or nil: one that must never run twice may run on a worker of which
-- a server that has just started anew knows nothing any more. By the end of the hold it is told of, or has stopped.
local function unsure_until(type, spawned_at)
  local exclusive, restarted, unsure, run =
    unpack(redis.call('HMGET', POOL, 'exclusive:' .. type, 'restarted_at', 'unsure_until', 'server_run'))
  if exclusive ~= '1' then
    return nil
  end
  if run and run ~= server_run() then
    return now + 1000 -- no master has noticed yet
  end
  local is_older = (tonumber(spawned_at) or 0) < (tonumber(restarted) or 0)
  return is_older and now < (tonumber(unsure) or 0) and tonumber(unsure) or nil
end

-- The next incarnation of an agent: above every earlier one, also when the server lost its latest writes.
local function next_incarnation(last)
  return math.max((tonumber(last) or 0) + 1, now)
end

-- Put an agent on a worker that has room; false when it has to wait. The caller rescores the worker.
local function assign(name, worker)
  local key = agent_key(name)
  local type, last, spawned_at, tenant, project, max_idle, heartbeat = unpack(redis.call('HMGET', key, 'agent_type',
    'incarnation', 'spawned_at', 'tenant', 'project', 'max_idle_ms', 'heartbeat_ms'))
  if not type then
    -- A name without a record: nothing of ours leaves one behind, and it cannot be started.
    redis.call('ZREM', POOL .. ':pending', name)
    return false
  end
  local unsure = unsure_until(type, spawned_at)
  if unsure then
    queue_agent(name, unsure)
    return false
  end
  local incarnation = next_incarnation(last)
  redis.call('HSET', key, 'status', 'placed', 'process_id', worker, 'placed_at', now, 'task_id', '', 'incarnation',
    incarnation)
  redis.call('ZREM', POOL .. ':pending', name)
  redis.call('SADD', held(worker, 'agents'), name)
  command(worker, {type = 'spawn', agent_id = pool .. '/' .. name, agent_type = type, incarnation = incarnation,
    tenant = tenant, project = project, max_idle_ms = tonumber(max_idle), heartbeat_ms = tonumber(heartbeat)}, true)
  note('agent.placed', name, worker)
  return true
end

-- The worker for an agent, by its labels and by the pool's strategy, or nil.
local function pick_for(name)
  local type, tenant, project = unpack(redis.call('HMGET', agent_key(name), 'agent_type', 'tenant', 'project'))
  return pick_worker(redis.call('HGET', POOL, 'labels:' .. (type or '')) or '', tenant or '', project or '')
end

-- Place an agent where there is room, or let it wait and ask for room.
local function place_or_queue(name)
  local worker = pick_for(name)
  if worker then
    local placed = assign(name, worker)
    rescore(worker)
    return placed and worker or nil
  end
  queue_agent(name, tonumber(redis.call('HGET', agent_key(name), 'spawned_at')) or now)
  tell_leader('room wanted')
  return nil
end

-- Agents that wait for a slot and whose time has come, longest first.
local function due_agents(limit)
  return redis.call('ZRANGEBYSCORE', POOL .. ':pending', '-inf', now, 'LIMIT', 0, limit)
end

-- Tell whether a worker has the labels that an agent needs.
local function suits(worker, name)
  local type = redis.call('HGET', agent_key(name), 'agent_type') or ''
  return offers(worker, redis.call('HGET', POOL, 'labels:' .. type) or '')
end

-- Tell whether the agent that has waited longest for a slot could be on this worker.
local function is_waited_for(worker)
  local name = due_agents(1)[1]
  return name and suits(worker, name)
end

-- Give the room of a worker to those who wait, longest first.
local function fill(worker, limit)
  if redis.call('HGET', process_key(worker), 'status') ~= 'ready' then
    return rescore(worker)
  end
  local room = math.min(rescore(worker), limit)
  if room > 0 then
    local waiting = due_agents(room)
    for _, name in ipairs(waiting) do
      if suits(worker, name) then
        assign(name, worker)
      end
    end
    if #waiting > 0 then
      rescore(worker)
    end
  end
end

-- Fail up to `limit` waiting tasks of an agent that ends; true when none is left.
local function empty_mailbox(name, limit, status, detail)
  local mailbox = POOL .. ':mailbox:' .. name
  for _, id in ipairs(redis.call('ZRANGE', mailbox, 0, limit - 1)) do
    finish_task(id, status, '', 'AgentTerminated', detail)
    redis.call('ZREM', mailbox, id)
  end
  return redis.call('EXISTS', mailbox) == 0
end

-- What stays known of an ended agent for an hour: its status, the request that made it, its last incarnation, and why.
local function leave_ending(name, status, operation, incarnation, detail)
  local words = {status, operation ~= '' and operation or '-', incarnation, detail}
  redis.call('SET', POOL .. ':ended:' .. name, table.concat(words, ' '), 'EX', 3600)
end

local function read_ending(name)
  return string.match(redis.call('GET', POOL .. ':ended:' .. name) or '', '^(%S+) (%S+) (%d+) (.*)$')
end

-- End an agent for good: its record moves to the history, its slot is free. Returns its worker, if it had one.
local function end_agent(name, status, detail)
  local key = agent_key(name)
  local worker, tenant, reply_to, task, operation, incarnation =
    unpack(redis.call('HMGET', key, 'process_id', 'tenant', 'reply_to', 'task_id', 'operation', 'incarnation'))
  worker, tenant, operation, incarnation = worker or '', tenant or 'default', operation or '', incarnation or 0
  redis.call('HSET', key, 'status', status, 'last_error', detail)
  remember('agent', pool .. '/' .. name, redis.call('HGETALL', key))
  redis.call('DEL', key, POOL .. ':snapshot:' .. name)
  redis.call('SREM', prefix .. 'tenant:' .. pool .. ':' .. tenant .. ':agents', name)
  redis.call('ZREM', POOL .. ':pending', name)
  leave_ending(name, status, operation, incarnation, detail)
  if task and task ~= '' then
    finish_task(task, 'agent_terminated', worker, 'AgentTerminated', detail, 1)
    end_lease(worker, task, tenant)
  end
  if reply_to and reply_to ~= '' then
    publish(reply_to, to_json({type = 'agent_ended', agent_id = pool .. '/' .. name, status = status,
      detail = detail}))
  end
  note('agent.' .. status, name, worker, detail)
  if worker ~= '' then
    redis.call('SREM', held(worker, 'agents'), name)
    command(worker, {type = 'terminate', agent_id = pool .. '/' .. name}, true)
    return worker
  end
end
