-- Give back what a dead worker held. The first call fences it; each moves at most `limit` things; any leader may go on.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  proof          "owner": its master saw it end; "stale": the leader missed its beats;
--                         "unstarted": the leader missed its registration; "lost": it is fenced already
-- ARGV[6]  authority      "owner": id of its master; else the leader's token
-- ARGV[7]  timeout_ms     "stale", "unstarted": silence that counts as death
-- ARGV[8]  reason         how it died
-- ARGV[9]  limit          things moved in this call, at most 100
-- ARGV[10] crashes_max    crashes of one agent while it started alone, after which it is given up
-- ARGV[11] backoff_ms     delay before an agent that was starting is placed again; doubles with each crash
-- ARGV[12…] id, blame     of each task that had begun: suspect, when it may have killed the worker; overdue, when it
--                         blocked it past its own time, and ends as timed out; or started. And `@<name>`, suspect, of the
--                         agent whose code had the CPU beside its tasks, if one had: the third time is its last
-- BUILDS   process:{w}  pool:{p}:workers  pool:{p}:lost  pool:{p}:processes  pool:{p}:starting  pool:{p}:draining
--          pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs
--          pool:{p}:worker:{w}:cancels  pool:{p}:leases  pool:{p}:pending  pool:{p}:history  pool:{p}:events
--          pool:{p}:mailbox:{n}  pool:{p}:snapshot:{n}  pool:{p}:ended:{n}  agent:{p}/{n}  task:{p}/{id}
--          tenant:{p}:{t}:agents  tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits  pool:{p}:worker:{w}:waits
--          pool:{p}:lane:{lane}:{t}  pool:{p}:lanes  pool:{p}:turns:{lane}  pool:{p}:tenants  pool:{p}:held
--          pool:{p}:suspects  pool:{p}:attempts  pool:{p}:errors:{id}  pool:{p}:dead  pool:{p}:letter:{id}
--          pool:{p}:audit  pool:{p}:followed  pool:{p}:trail:{id}  lock:pool:{p}:leader  pool:{p}:affinity
--          pool:{p}:children:{id}  pool:{p}:due  pool:{p}:key:{digest}  pool:{p}:served  tenant:{p}:{t}:mail
--          tenant:{p}:{t}:usage
-- RETURNS  {"more", moved} | {"done", moved} | {"gone"} | {"fenced"} | {"alive"} | {"held"}
-- AGAIN    "more" until everything is moved, then "gone"

local KILLS_MAX, KILLS_FORGOTTEN_MS = 3, 3600000
local worker, proof, authority, reason, limit = ARGV[4], ARGV[5], ARGV[6], ARGV[8], tonumber(ARGV[9])
local key = process_key(worker)
local status, master = unpack(redis.call('HMGET', key, 'status', 'master'))
if not status then
  redis.call('ZREM', POOL .. ':lost', worker)
  return {'gone'}
end

local function allowed()
  if proof == 'owner' then
    return master == authority and 'yes' or 'fenced'
  end
  if not holds('leader', authority) then
    return 'fenced'
  end
  if proof == 'lost' then
    return status == 'lost' and 'yes' or 'alive'
  end
  local tick, hold, run = unpack(redis.call('HMGET', POOL, 'tick', 'hold_until', 'server_run'))
  if now - (tonumber(tick) or 0) > 2000 or now < (tonumber(hold) or 0) or (run or '') ~= server_run() then
    return 'held'
  end
  if proof == 'unstarted' and status ~= 'ordered' and status ~= 'starting' then
    return 'alive'
  end
  local beat = tonumber(redis.call('ZSCORE', POOL .. ':workers', worker)) or 0
  return now - beat >= tonumber(ARGV[7]) and 'yes' or 'alive'
end

local verdict = allowed()
if verdict ~= 'yes' then
  return {verdict}
end

-- The agent that was starting, if nothing else was and no task ran: only then it is sure to be what killed the worker.
local function lone_starter()
  local found
  if redis.call('EXISTS', held(worker, 'tasks'), held(worker, 'runs')) > 0 then
    return ''
  end
  for _, name in ipairs(redis.call('SRANDMEMBER', held(worker, 'agents'), 100)) do
    if redis.call('HGET', agent_key(name), 'status') == 'placed' then
      if found then
        return ''
      end
      found = name
    end
  end
  return found or ''
end

if status ~= 'lost' then
  redis.call('HSET', key, 'status', 'lost', 'reason', reason, 'starter', lone_starter())
  redis.call('ZADD', POOL .. ':lost', now, worker)
  for _, index in ipairs({'processes', 'workers', 'starting', 'draining'}) do
    redis.call('ZREM', POOL .. ':' .. index, worker)
  end
  command(worker, {type = 'shutdown'})
  note('worker.lost', '', worker, reason)
end

local moved, by_type = 0, 0
local blame, alone = {}, redis.call('HGET', key, 'alone')
if redis.call('ZCARD', held(worker, 'tasks')) + redis.call('ZCARD', held(worker, 'runs')) > 1 then
  alone = false -- it waited for tasks of its own, and may have died of one of them
end
for i = 12, #ARGV, 2 do
  blame[ARGV[i]] = ARGV[i + 1]
end
for _, set in ipairs({'tasks', 'runs'}) do
  for _, id in ipairs(redis.call('ZRANGE', held(worker, set), 0, limit - moved - 1)) do
    give_back_after_crash(id, worker, blame[id] or '', alone == id, reason)
    moved = moved + 1
    by_type = by_type + (set == 'tasks' and 1 or 0)
  end
  if by_type > 0 then
    wake_workers(by_type)
    by_type = 0
  end
  if moved >= limit then
    rescore(worker)
    return {'more', moved}
  end
end

local has_culprit = false
for id in pairs(blame) do
  has_culprit = has_culprit or string.sub(id, 1, 1) == '@'
end

-- The agent whose code had the CPU when the worker died. Long after its last time it counts anew.
local function return_culprit(name)
  local agent = agent_key(name)
  local status, placed_at, kills = unpack(redis.call('HMGET', agent, 'status', 'placed_at', 'kills'))
  kills = now - (tonumber(placed_at) or 0) > KILLS_FORGOTTEN_MS and 1 or (tonumber(kills) or 0) + 1
  local doing = status == 'placed' and 'while it started' or 'while its own code ran'
  local why = 'its worker was lost ' .. kills .. ' times ' .. doing .. ': ' .. reason
  redis.call('HSET', agent, 'kills', kills, 'last_error', why)
  if kills >= KILLS_MAX and empty_mailbox(name, 100, 'agent_terminated', reason) then
    redis.call('HSET', agent, 'process_id', '')
    end_agent(name, 'failed', why)
  else
    queue_agent(name, now + ARGV[11] * 2 ^ (kills - 1))
  end
end

-- An agent that was starting may be what killed the worker, unless it is known who did: it comes back later, and ever
-- further apart from the others that were, so that in the end it is alone with what it does. Nobody is given up for the
-- company it was in.
local starter = redis.call('HGET', key, 'starter')
local apart = 0
local function return_agent(name)
  local agent = agent_key(name)
  if blame['@' .. name] then
    return_culprit(name)
    return
  end
  if has_culprit or redis.call('HGET', agent, 'status') ~= 'placed' then
    place_or_queue(name)
    return
  end
  local crashes = redis.call('HINCRBY', agent, 'crashes', 1)
  local alone = redis.call('HINCRBY', agent, 'crashes_alone', name == starter and 1 or 0)
  redis.call('HSET', agent, 'last_error', 'its worker was lost while it started: ' .. reason)
  if alone >= tonumber(ARGV[10]) and empty_mailbox(name, 100, 'agent_terminated', reason) then
    redis.call('HSET', agent, 'process_id', '')
    end_agent(name, 'failed', 'its worker was lost ' .. alone .. ' times while it started there alone: ' .. reason)
  elseif crashes == 1 then
    place_or_queue(name)
  else
    apart = apart + 1
    queue_agent(name, now + ARGV[11] * 2 ^ math.min(crashes - 2, 6) * apart)
  end
end

local names = redis.call('SRANDMEMBER', held(worker, 'agents'), limit - moved)
for _, name in ipairs(names) do
  redis.call('SREM', held(worker, 'agents'), name)
  return_agent(name)
  moved = moved + 1
end
if redis.call('EXISTS', held(worker, 'agents')) == 1 then
  rescore(worker)
  return {'more', moved}
end
forget_worker(worker, 'lost', reason)
note('worker.reaped', '', worker, reason)
tell_leader('worker reaped')
return {'done', moved}
