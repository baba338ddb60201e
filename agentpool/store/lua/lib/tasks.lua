-- Tasks: how one ends, and how a waiting one is told. Needs base.lua and workers.lua.

local function task_key(id)
  return prefix .. 'task:' .. id
end

-- Record the outcome, once: false when there is one already or the task is unknown.
local function finish_task(id, outcome, ttl_ms)
  local head = redis.call('GETRANGE', task_key(id), 0, 400)
  local reply_to, _, _, tenant = string.match(head, '^task (%S+) (%S+) (%S+) (%S+)\n')
  if not reply_to then
    return false
  end
  redis.call('SET', task_key(id), outcome, 'PX', ttl_ms)
  redis.call('SREM', prefix .. 'tenant:' .. pool .. ':' .. tenant .. ':tasks', id)
  if reply_to ~= '-' then
    local body = #outcome <= 1400 and ',"outcome":' .. outcome or ''
    publish(reply_to, '{"type":"task_done","task_id":' .. to_json(id) .. body .. '}')
  end
  return true
end

-- An outcome that no worker wrote: flat words only, so that cjson is safe.
local function plain_outcome(status, worker, kind, message)
  return to_json({status = status, process_id = worker, error = {type = kind, message = message}})
end

local function end_lease(worker, id)
  redis.call('ZREM', held(worker, 'tasks'), id)
  redis.call('ZREM', held(worker, 'runs'), id)
  redis.call('SREM', held(worker, 'cancels'), id)
  redis.call('HDEL', POOL .. ':leases', id)
end

-- A rank behind everything that waits already, so that order is first in, first out within one microsecond too.
local function next_rank(queue)
  local last = redis.call('ZREVRANGE', queue, 0, 0, 'WITHSCORES')[2]
  return last and math.max(now_us, last + 1) or now_us
end

local function result_ttl()
  return tonumber(redis.call('HGET', POOL, 'result_ttl_ms')) or 3600000
end
