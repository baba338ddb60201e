-- Let each of these agents be in one place: where its record and a worker's set agree, or else a new one.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] agent          at most 100: `name place…`, each place a worker that names it, or `-` for those that wait
-- BUILDS   agent:{p}/{n}  pool:{p}:affinity  pool:{p}:events  pool:{p}:leases  pool:{p}:pending  pool:{p}:processes
--          pool:{p}:served  pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:tasks  process:{w}
-- RETURNS  {"ok"}
-- AGAIN    the same

local ALIVE = ' placed idle active recycling '

local function drop(name, place)
  if place == '-' then
    redis.call('ZREM', POOL .. ':pending', name)
  elseif redis.call('SREM', held(place, 'agents'), name) == 1 and redis.call('EXISTS', process_key(place)) == 1 then
    command(place, {type = 'terminate', agent_id = pool .. '/' .. name}, true)
    rescore(place)
  end
end

local function is_at_home(name, owner, status, incarnation)
  return owner ~= '' and tonumber(incarnation) and string.find(ALIVE, ' ' .. status .. ' ', 1, true)
    and redis.call('EXISTS', process_key(owner)) == 1 and redis.call('SISMEMBER', held(owner, 'agents'), name) == 1
end

-- It runs a task exactly when its worker has a lease of it.
local function agree_on_task(name, owner, status, task)
  local lease = task ~= '' and read_lease(task)
  local works = lease and lease.worker == owner
  if works and status ~= 'active' then
    redis.call('HSET', agent_key(name), 'status', 'active')
  elseif not works and (status == 'active' or task ~= '') then
    redis.call('HSET', agent_key(name), 'status', status == 'active' and 'idle' or status, 'task_id', '')
    command(owner, {type = 'wake', agent_id = pool .. '/' .. name}, true)
  end
end

for i = 4, #ARGV do
  local name = string.match(ARGV[i], '^%S+')
  local type, status, owner, task, incarnation =
    unpack(redis.call('HMGET', agent_key(name), 'agent_type', 'status', 'process_id', 'task_id', 'incarnation'))
  status, owner, task = status or '', owner or '', task or ''
  local at_home = type and is_at_home(name, owner, status, incarnation)
  for place in string.gmatch(ARGV[i], ' (%S+)') do
    if not (at_home and place == owner) then
      drop(name, place)
    end
  end
  if at_home then
    agree_on_task(name, owner, status, task)
  elseif type then
    if not tonumber(incarnation) then
      redis.call('HSET', agent_key(name), 'incarnation', now) -- above every one that it may have had
    end
    place_or_queue(name)
  end
end
return {'ok'}
