-- Workers: what they hold, and their place in the index of free slots. Needs base.lua.

local function process_key(worker)
  return prefix .. 'process:' .. worker
end

local function held(worker, what)
  return POOL .. ':worker:' .. worker .. ':' .. what
end

-- The one way in which free slots are written: absolutely, from what the worker holds.
local function rescore(worker)
  local key = process_key(worker)
  local status, capacity, idle_since = unpack(redis.call('HMGET', key, 'status', 'capacity', 'idle_since'))
  local agents = redis.call('SCARD', held(worker, 'agents'))
  local tasks = redis.call('ZCARD', held(worker, 'tasks'))
  local free = math.max(0, (tonumber(capacity) or 0) - agents - tasks)
  if status == 'ready' then
    redis.call('ZADD', POOL .. ':processes', free, worker)
  else
    redis.call('ZREM', POOL .. ':processes', worker)
  end
  local idle = ''
  if agents + tasks == 0 then
    idle = (idle_since and idle_since ~= '') and idle_since or now
  end
  redis.call('HSET', key, 'agent_count', agents, 'task_count', tasks, 'available', free, 'idle_since', idle)
  return free
end

-- Send a command. The version tells the worker whether it missed an earlier one.
local function command(worker, message, changes_sets)
  message.process_id = worker
  message.version = changes_sets and redis.call('HINCRBY', process_key(worker), 'version', 1) or nil
  local text = to_json(message)
  publish('worker:' .. worker .. ':commands', text)
  publish('pool:' .. pool .. ':commands', text)
end

-- Workers with room, at most `limit`, in the order of the pool's strategy: {worker, free}.
local function workers_with_room(limit)
  local rows
  if redis.call('HGET', POOL, 'placement') == 'pack' then
    rows = redis.call('ZRANGEBYSCORE', POOL .. ':processes', 1, '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
  else
    rows = redis.call('ZREVRANGEBYSCORE', POOL .. ':processes', '+inf', 1, 'WITHSCORES', 'LIMIT', 0, limit)
  end
  local found = {}
  for i = 1, #rows, 2 do
    found[#found + 1] = {worker = rows[i], free = tonumber(rows[i + 1])}
  end
  return found
end

-- The worker that the pool's strategy prefers, or nil when none has room.
local function pick_worker()
  local found = workers_with_room(1)[1]
  return found and found.worker
end

local function forget_worker(worker, status, reason)
  local key = process_key(worker)
  redis.call('HSET', key, 'status', status, 'reason', reason)
  redis.call('HDEL', key, 'secret')
  remember('worker', worker, redis.call('HGETALL', key))
  redis.call('DEL', key, held(worker, 'agents'), held(worker, 'tasks'), held(worker, 'runs'), held(worker, 'cancels'))
  for _, index in ipairs({'processes', 'workers', 'starting', 'draining', 'lost'}) do
    redis.call('ZREM', POOL .. ':' .. index, worker)
  end
end
