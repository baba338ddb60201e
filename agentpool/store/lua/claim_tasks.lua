-- A worker takes tasks: one from the mailbox of each idle agent it names, and tasks by type for its free slots.
--
-- @include base workers tasks
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  number         of this claim, above all earlier ones of the worker
-- ARGV[6]  limit          tasks by type at most
-- ARGV[7…] names          of idle pinned agents, at most 100
-- BUILDS   process:{w}  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs  pool:{p}:leases  pool:{p}:lanes
--          pool:{p}:lane:{type}:{t}  pool:{p}:mailbox:{n}  agent:{p}/{n}  task:{p}/{id}  tenant:{p}:{t}:tasks
--          pool:{p}:processes
-- RETURNS  {"ok", lanes that still hold tasks, id, record, id, record…} | {"gone"}
-- AGAIN    the same number gets the same tasks, as far as they are unfinished; an older one, which comes late, none

local worker, number = ARGV[4], ARGV[5]
local key = process_key(worker)
local status, last, batch = unpack(redis.call('HMGET', key, 'status', 'claim_number', 'claim_batch'))
if not status or status == 'lost' then
  return {'gone'}
end
local taken = {}

local function lease(id, set)
  local record = redis.call('GET', task_key(id))
  local tenant = record and string.match(record, '^task %S+ %S+ %S+ (%S+)\n')
  if not tenant then
    return false
  end
  redis.call('ZADD', held(worker, set), now, id)
  redis.call('HSET', POOL .. ':leases', id, worker)
  redis.call('SADD', prefix .. 'tenant:' .. pool .. ':' .. tenant .. ':tasks', id)
  taken[#taken + 1] = id
  return true
end

local function claim_mailbox(name)
  local agent = prefix .. 'agent:' .. pool .. '/' .. name
  local owner, state = unpack(redis.call('HMGET', agent, 'process_id', 'status'))
  if owner ~= worker or state ~= 'idle' then
    return
  end
  local id = redis.call('ZPOPMIN', POOL .. ':mailbox:' .. name)[1]
  if id and lease(id, 'runs') then
    redis.call('HSET', agent, 'status', 'active', 'task_id', id)
  end
end

-- The lane whose turn is oldest gives one task and goes to the end.
local function claim_lane()
  local lane = redis.call('ZRANGE', POOL .. ':lanes', 0, 0)[1]
  if not lane then
    return false
  end
  local queue = POOL .. ':lane:' .. lane
  local id = redis.call('ZPOPMIN', queue)[1]
  if redis.call('EXISTS', queue) == 1 then
    redis.call('ZADD', POOL .. ':lanes', next_rank(POOL .. ':lanes'), lane)
  else
    redis.call('ZREM', POOL .. ':lanes', lane)
  end
  return id and lease(id, 'tasks')
end

if last == number then
  for id in string.gmatch(batch, '%S+') do
    if redis.call('HGET', POOL .. ':leases', id) == worker then
      taken[#taken + 1] = id
    end
  end
elseif status == 'ready' and tonumber(number) > (tonumber(last) or 0) then
  for i = 7, #ARGV do
    claim_mailbox(ARGV[i])
  end
  local room = math.min(tonumber(ARGV[6]), rescore(worker))
  while room > 0 and claim_lane() do
    room = room - 1
  end
  rescore(worker)
  redis.call('HSET', key, 'claim_number', number, 'claim_batch', table.concat(taken, ' '))
end
local answer = {'ok', redis.call('ZCARD', POOL .. ':lanes')}
for _, id in ipairs(taken) do
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('GET', task_key(id))
end
return answer
