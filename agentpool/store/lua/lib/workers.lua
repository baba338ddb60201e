-- Workers: what they hold, and their place in the index of free slots. Needs base.lua.

local function process_key(worker)
  return prefix .. 'process:' .. worker
end

local function held(worker, what)
  return POOL .. ':worker:' .. worker .. ':' .. what
end

-- What a script has read of workers that it will rescore: {status, capacity, idle_since, version, …}.
local known_workers = {}

-- The one way in which free slots are written: absolutely, from what the worker holds. `words` are written beside it.
local function rescore(worker, words)
  local key = process_key(worker)
  local known = known_workers[worker] or redis.call('HMGET', key, 'status', 'capacity', 'idle_since')
  local status, capacity, idle_since = known[1], known[2], known[3]
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
  known[3] = idle
  redis.call('HSET', key, 'agent_count', agents, 'task_count', tasks, 'available', free, 'idle_since', idle,
    unpack(words or {}))
  return free
end

-- Send a command. The version, which may be given, tells the worker whether it missed an earlier one. Whoever watches the
-- pool's commands does not see what tasks are about.
local function command(worker, message, changes_sets)
  local known = known_workers[worker]
  message.process_id = worker
  if changes_sets then
    message.version = redis.call('HINCRBY', process_key(worker), 'version', 1)
    if known then
      known[4] = message.version
    end
  end
  -- Nobody reads along in tasks, so their slashes stay as cjson writes them: to look for them takes a third as long.
  local text = message.tasks and cjson.encode(message) or to_json(message)
  publish('worker:' .. worker .. ':commands', text)
  if message.tasks then
    message.tasks = nil
    text = to_json(message)
  end
  publish('pool:' .. pool .. ':commands', text)
end

-- Workers with room, at most `limit`, in the order of the pool's strategy: {worker, free}.
local function workers_with_room(limit)
  local rows
  if pool_field('placement') == 'pack' then
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

local function offers(worker, labels)
  if labels == '' then
    return true
  end
  local has = ' ' .. (redis.call('HGET', process_key(worker), 'labels') or '') .. ' '
  for label in string.gmatch(labels, '[^+]+') do
    if not string.find(has, ' ' .. label .. ' ', 1, true) then
      return false
    end
  end
  return true
end

-- The label, of those that must be on one worker, for which no host has workers; nil when some host has them all.
local function unmatched(labels)
  local lacks
  for _, offer in ipairs(redis.call('HVALS', POOL .. ':labels')) do
    local missing
    for label in string.gmatch(labels, '[^+]+') do
      if not string.find(' ' .. offer .. ' ', ' ' .. label .. ' ', 1, true) then
        missing = label
      end
    end
    if not missing then
      return nil
    end
    lacks = missing
  end
  return lacks or labels
end

-- The worker that the pool's strategy prefers for an agent, or nil when none with its labels has room. Looks at most
-- at 100. With an affinity, where the tenant's or project's agents are; round robin, who waited longest for one.
local function pick_worker(labels, tenant, project)
  local strategy = pool_field('placement')
  local found, plain = {}, labels == '' and (strategy == 'least_loaded' or strategy == 'pack')
  for _, row in ipairs(workers_with_room(plain and 1 or 100)) do
    if offers(row.worker, labels) then
      found[#found + 1] = row.worker
    end
  end
  if #found < 2 or strategy == 'least_loaded' or strategy == 'pack' then
    return found[1]
  end
  if strategy == 'round_robin' then
    local best, served
    for _, worker in ipairs(found) do
      local at = tonumber(redis.call('ZSCORE', POOL .. ':served', worker)) or 0
      if not served or at < served then
        best, served = worker, at
      end
    end
    redis.call('ZADD', POOL .. ':served', now_us, best)
    return best
  end
  local field = strategy == 'project_affinity' and project ~= '' and tenant .. '/' .. project or tenant
  local favourite = redis.call('HGET', POOL .. ':affinity', field)
  for _, worker in ipairs(found) do
    if worker == favourite then
      return worker
    end
  end
  redis.call('HSET', POOL .. ':affinity', field, found[1])
  return found[1]
end

local function forget_worker(worker, status, reason)
  local key = process_key(worker)
  redis.call('HSET', key, 'status', status, 'reason', reason)
  redis.call('HDEL', key, 'secret')
  redis.call('ZREM', POOL .. ':served', worker)
  remember('worker', worker, redis.call('HGETALL', key))
  redis.call('DEL', key, held(worker, 'agents'), held(worker, 'tasks'), held(worker, 'runs'), held(worker, 'cancels'),
    held(worker, 'waits'))
  if redis.call('HGET', POOL, 'clearing') == worker then
    redis.call('HDEL', POOL, 'clearing')
  end
  for _, index in ipairs({'processes', 'workers', 'starting', 'draining', 'lost'}) do
    redis.call('ZREM', POOL .. ':' .. index, worker)
  end
end
