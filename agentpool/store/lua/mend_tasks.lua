-- Let each of these tasks be in one place while it is unfinished, and in none afterwards.
--
-- @include base workers tenants tasks
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] task           at most 100: `id kind=where…`, the places that name it: lane, mailbox, or worker
-- BUILDS   agent:{p}/{n}  pool:{p}:attempts  pool:{p}:audit  pool:{p}:children:{id}  pool:{p}:dead  pool:{p}:due
--          pool:{p}:errors:{id}  pool:{p}:followed  pool:{p}:held  pool:{p}:key:{digest}  pool:{p}:lane:{lane}:{t}
--          pool:{p}:lanes  pool:{p}:leases  pool:{p}:letter:{id}  pool:{p}:mailbox:{n}  pool:{p}:processes
--          pool:{p}:suspects  pool:{p}:tenants  pool:{p}:trail:{id}  pool:{p}:turns:{lane}
--          pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:cancels  pool:{p}:worker:{w}:runs
--          pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:waits  process:{w}  task:{p}/{id}  tenant:{p}:{t}:delayed
--          tenant:{p}:{t}:waits
-- RETURNS  {"ok"}
-- AGAIN    the same

local function leave_lane(queue, id)
  local key = POOL .. ':lane:' .. queue
  if redis.call('ZREM', key, id) == 1 then
    redis.call('HINCRBY', POOL, 'queued', -1)
    local lane, tenant = string.match(queue, '^(.*):([^:]*)$')
    if redis.call('EXISTS', key) == 0 then
      redis.call('ZREM', POOL .. ':turns:' .. lane, tenant)
    end
  end
end

local function leave_worker(worker, id)
  for _, set in ipairs({'tasks', 'runs'}) do
    redis.call('ZREM', held(worker, set), id)
  end
  redis.call('SREM', held(worker, 'cancels'), id)
  redis.call('SREM', held(worker, 'waits'), id)
  if redis.call('EXISTS', process_key(worker)) == 1 then
    rescore(worker)
  end
end

local function leave_due(id, head)
  if redis.call('ZREM', POOL .. ':due', 'start ' .. id) == 1 then
    redis.call('HINCRBY', POOL, 'delayed', -1)
    if head then
      redis.call('SREM', tenant_key(head.tenant, 'delayed'), id)
    end
  end
end

-- What is named where it does not belong.
local function leave_strays(id, head, lease, places)
  for kind, where in string.gmatch(places, ' (%a+)=(%S+)') do
    if kind == 'lane' and not (head and head.agent == '-' and where == head.lane .. ':' .. head.tenant) then
      leave_lane(where, id)
    elseif kind == 'mailbox' and not (head and head.agent == where) then
      redis.call('ZREM', POOL .. ':mailbox:' .. where, id)
    elseif kind == 'worker' and not (lease and lease.worker == where) then
      leave_worker(where, id)
    end
  end
end

local function leave_all(id)
  redis.call('ZREM', POOL .. ':suspects', id)
  redis.call('ZREM', POOL .. ':due', 'expire ' .. id, 'promote ' .. id)
  leave_due(id)
  redis.call('HDEL', POOL .. ':leases', id)
  redis.call('HDEL', POOL .. ':attempts', id)
  redis.call('DEL', POOL .. ':errors:' .. id)
  if redis.call('EXISTS', POOL .. ':letter:' .. id) == 1 then
    redis.call('ZADD', POOL .. ':dead', 'NX', now, id)
  else
    redis.call('ZREM', POOL .. ':dead', id)
  end
end

-- Its worker has it, and it waits nowhere.
local function stay_leased(id, head, lease)
  redis.call('ZREM', POOL .. ':suspects', id)
  leave_due(id, head)
  leave_lane(head.lane .. ':' .. head.tenant, id)
  redis.call('ZREM', POOL .. ':mailbox:' .. head.agent, id)
  local right, wrong = 'tasks', 'runs'
  if head.agent ~= '-' then
    right, wrong = 'runs', 'tasks'
  end
  redis.call('ZADD', held(lease.worker, right), 'NX', now, id)
  redis.call('ZREM', held(lease.worker, wrong), id)
  rescore(lease.worker)
end

-- Of the ways in which it may wait the first that it does remains; if it does in none, it waits again.
local function wait_once(id, head)
  local lane = head.lane .. ':' .. head.tenant
  local found = redis.call('ZSCORE', POOL .. ':due', 'start ' .. id)
  if redis.call('ZSCORE', POOL .. ':suspects', id) then
    if found then
      redis.call('ZREM', POOL .. ':suspects', id)
    end
    found = true
  end
  local queue = head.agent == '-' and POOL .. ':lane:' .. lane or POOL .. ':mailbox:' .. head.agent
  if redis.call('ZSCORE', queue, id) then
    if found and head.agent == '-' then
      leave_lane(lane, id)
    elseif found then
      redis.call('ZREM', queue, id)
    end
    found = true
  end
  if not found then
    enqueue(id, head)
    wake_workers(1)
  end
end

for i = 4, #ARGV do
  local id = string.match(ARGV[i], '^%S+')
  local head, lease = read_head(id), read_lease(id)
  if lease and redis.call('EXISTS', process_key(lease.worker)) == 0 then
    lease = nil
  end
  leave_strays(id, head, head and lease, ARGV[i])
  if not head then
    leave_all(id)
  elseif lease then
    stay_leased(id, head, lease)
  else
    redis.call('HDEL', POOL .. ':leases', id)
    if head.agent ~= '-' and redis.call('EXISTS', agent_key(head.agent)) == 0 then
      dequeue(id, head)
      finish_task(id, 'agent_terminated', '', 'AgentTerminated', 'its agent is not there')
    else
      wait_once(id, head)
    end
  end
end
return {'ok'}
