-- Do what is due: begin delayed and retried tasks, end expired ones, promote batch tasks, give tenants their turns back.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  limit          timers in this call, at most 100
-- BUILDS   pool:{p}:due  task:{p}/{id}  pool:{p}:leases  pool:{p}:lane:{lane}:{t}  pool:{p}:lanes
--          pool:{p}:turns:{lane}  pool:{p}:mailbox:{n}  agent:{p}/{n}  process:{w}  pool:{p}:processes
--          pool:{p}:tenants  pool:{p}:held  pool:{p}:suspects  pool:{p}:attempts  pool:{p}:errors:{id}
--          pool:{p}:children:{id}  pool:{p}:key:{digest}  pool:{p}:followed  pool:{p}:trail:{id}  pool:{p}:audit
--          pool:{p}:worker:{w}:waits  tenant:{p}:{t}:mail  tenant:{p}:{t}:waits  pool:{p}:ended:{n}
--          tenant:{p}:{t}:delayed  tenant:{p}:{t}:usage
-- RETURNS  {"ok", fired, ms until the next one is due or -1}
-- AGAIN    what is still due, which a repeat may find none of

local woken = 0

local function start(id, head)
  redis.call('SREM', tenant_key(head.tenant, 'delayed'), id)
  if head.agent == '-' then
    enqueue(id, head, nil, read_attempts(id).suspect == 1)
    woken = woken + 1
    return
  end
  local worker, status = unpack(redis.call('HMGET', agent_key(head.agent), 'process_id', 'status'))
  if not status then
    local _, _, _, detail = read_ending(head.agent)
    finish_task(id, 'agent_terminated', '', 'AgentTerminated', detail or 'the agent has ended')
    return
  end
  enqueue(id, head)
  if status == 'idle' then
    command(worker, {type = 'wake', agent_id = pool .. '/' .. head.agent}, true)
  end
end

-- What has begun once is not too late any more, also when it waits to be tried again.
local function expire(id, head)
  local tried = read_attempts(id)
  if redis.call('HEXISTS', POOL .. ':leases', id) == 0 and tried.attempts + tried.crashes == 0 then
    dequeue(id, head)
    finish_task(id, 'expired', '', 'TaskExpired', 'no agent took it in the time it was given')
  end
end

-- It has waited long enough behind everything else: from now on it waits like others, and keeps its time. One that is
-- leased or delayed just now may wait again.
local function promote(id, head)
  if string.sub(head.lane, 1, 5) ~= 'batch' then
    return
  end
  local record = string.gsub(redis.call('GET', task_key(id)), '^(task %S+ %S+ %S+ %S+) batch', '%1 normal', 1)
  local rank = redis.call('ZSCORE', lane_key(head.lane, head.tenant), id)
  if rank then
    dequeue(id, head)
  end
  redis.call('SET', task_key(id), record)
  local lease = redis.call('HGET', POOL .. ':leases', id)
  if lease then
    redis.call('HSET', POOL .. ':leases', id, (string.gsub(lease, ' batch', ' normal', 1)))
  end
  if rank then
    enqueue(id, parse_head(record), tonumber(rank))
    woken = woken + 1
  end
end

local fired = redis.call('ZRANGEBYSCORE', POOL .. ':due', '-inf', now, 'LIMIT', 0, tonumber(ARGV[4]))
for _, timer in ipairs(fired) do
  redis.call('ZREM', POOL .. ':due', timer)
  local kind, id = string.match(timer, '^(%S+) (%S+)$')
  if kind == 'start' then
    redis.call('HINCRBY', POOL, 'delayed', -1)
  end
  if kind == 'tenant' then
    woken = woken + (let_go(id, true) and 1 or 0)
  else
    local head = id and read_head(id)
    if head and kind == 'start' then
      start(id, head)
    elseif head and kind == 'expire' then
      expire(id, head)
    elseif head and kind == 'promote' then
      promote(id, head)
    end
  end
end
if woken > 0 then
  wake_workers(woken)
end
local next_due = redis.call('ZRANGE', POOL .. ':due', 0, 0, 'WITHSCORES')[2]
return {'ok', #fired, next_due and math.max(0, math.ceil(next_due - now)) or -1}
