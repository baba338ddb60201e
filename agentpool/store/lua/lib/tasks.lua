-- Tasks: what their header says, where they wait, how one ends, and how a waiting one is told.
-- Needs base.lua, workers.lua and tenants.lua.

local function task_key(id)
  return prefix .. 'task:' .. id
end

-- What scripts read of a record: its header is shorter.
local HEADER_BYTES = 2500

local function parse_head(text)
  local reply_to, agent, type, tenant, lane, later_us, options =
    string.match(text, '^task (%S+) (%S+) (%S+) (%S+) (%S+) (%d+) (%S+)')
  return reply_to and {reply_to = reply_to, agent = agent, type = type, tenant = tenant, lane = lane,
    later_us = tonumber(later_us), options = options ~= '-' and ',' .. options}
end

-- The plain words that a task begins with; nil when it is finished or unknown.
local function read_head(id)
  local text = redis.call('GETRANGE', task_key(id), 0, HEADER_BYTES)
  return string.sub(text, 1, 5) == 'task ' and parse_head(text) or nil
end

local function option(head, name)
  return head.options and string.match(head.options, ',' .. name .. '=([^,]*)')
end

local function result_ttl()
  return tonumber(pool_field('result_ttl_ms')) or 3600000
end

-- What an execution's end leaves in the audit, for outcomes that no worker wrote.
local function audit(id, head, status, worker, why)
  if redis.call('HGET', POOL, 'audit') == '0' then
    return
  end
  redis.call('XADD', POOL .. ':audit', '*', 'lines', to_json({task_id = id, status = status, at = now,
    tenant = head.tenant, agent_type = head.type ~= '-' and head.type or '',
    agent_id = head.agent ~= '-' and pool .. '/' .. head.agent or '', process_id = worker, error = why}))
end

local followed, tried_again = nil, nil

-- Tell whether anybody follows any task.
local function has_followers()
  if followed == nil then
    followed = redis.call('EXISTS', POOL .. ':followed') == 1
  end
  return followed
end

-- Tell those who follow a task what became of it; nothing follows the last event.
local function tell_followers(id, event, detail, is_last)
  if has_followers() and redis.call('HEXISTS', POOL .. ':followed', id) == 1 then
    if is_last then
      redis.call('HDEL', POOL .. ':followed', id)
    end
    local trail = POOL .. ':trail:' .. id
    redis.call('XADD', trail, 'MAXLEN', '~', 1000, '*', 'type', event, 'at', now, 'detail', detail or '')
    redis.call('PEXPIRE', trail, result_ttl())
  end
end

-- -- attempts: `attempts crashes alone starts suspect`, kept only of tasks that did not end well the first time -------

-- Tell whether anything is known of any task's attempts: mostly nothing is, which saves looking for each.
local function has_attempts()
  if tried_again == nil then
    tried_again = redis.call('EXISTS', POOL .. ':attempts') == 1
  end
  return tried_again
end

local function read_attempts(id)
  local words = has_attempts() and redis.call('HGET', POOL .. ':attempts', id)
  if not words then
    return {attempts = 0, crashes = 0, alone = 0, starts = 0, suspect = 0}, false
  end
  local attempts, crashes, alone, starts, suspect = string.match(words, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {attempts = tonumber(attempts), crashes = tonumber(crashes), alone = tonumber(alone),
    starts = tonumber(starts), suspect = tonumber(suspect)}, true
end

local function write_attempts(id, tried)
  tried_again = true
  redis.call('HSET', POOL .. ':attempts', id, table.concat({tried.attempts, tried.crashes, tried.alone, tried.starts,
    tried.suspect}, ' '))
end

-- Keep what went wrong with one attempt, or the crash of this number, for the case that the task ends among the dead
-- letters; of many, the last ones.
local function note_error(id, kind, number, error)
  redis.call('HSET', POOL .. ':errors:' .. id, kind .. number, error)
  redis.call('HDEL', POOL .. ':errors:' .. id, kind .. number - 20)
end

-- An outcome that no worker wrote: flat words only, so that cjson is safe. `begun`: attempts that ended just now.
local function plain_outcome(id, status, worker, kind, message, begun)
  return to_json({status = status, process_id = worker, attempts = read_attempts(id).attempts + begun,
    error = {type = kind, message = message}})
end

-- -- queues ---------------------------------------------------------------------------------------------------------

-- A rank behind everything that waits already, so that order is first in, first out within one microsecond too.
local function next_rank(queue)
  local last = redis.call('ZREVRANGE', queue, 0, 0, 'WITHSCORES')[2]
  return last and math.max(now_us, last + 1) or now_us
end

-- Put a task where it waits: its agent's mailbox, those that shall run alone, or its tenant's queue in its lane.
local function enqueue(id, head, rank, suspect)
  if head.agent ~= '-' then
    local mailbox = POOL .. ':mailbox:' .. head.agent
    redis.call('ZADD', mailbox, rank or next_rank(mailbox), id)
  elseif suspect then
    redis.call('ZADD', POOL .. ':suspects', now, id)
  else
    add_lane(head.lane)
    redis.call('ZADD', lane_key(head.lane, head.tenant), rank or now_us + head.later_us, id)
    redis.call('HINCRBY', POOL, 'queued', 1)
    enlist(head.lane, head.tenant)
  end
end

-- Take a task out of the place where it waits, whichever that is.
local function dequeue(id, head)
  if redis.call('ZREM', POOL .. ':due', 'start ' .. id) == 1 then
    redis.call('HINCRBY', POOL, 'delayed', -1)
    redis.call('SREM', tenant_key(head.tenant, 'delayed'), id)
    return
  end
  if head.agent ~= '-' then
    redis.call('ZREM', POOL .. ':mailbox:' .. head.agent, id)
    return
  end
  if redis.call('ZREM', POOL .. ':suspects', id) == 1 then
    return
  end
  local queue = lane_key(head.lane, head.tenant)
  if redis.call('ZREM', queue, id) == 1 then
    redis.call('HINCRBY', POOL, 'queued', -1)
    if redis.call('EXISTS', queue) == 0 then
      redis.call('ZREM', POOL .. ':turns:' .. head.lane, head.tenant)
    end
  end
end

-- Let something happen to a task at a time; whoever watches the timers is told when it is the next one.
local function set_timer(kind, id, at)
  redis.call('ZADD', POOL .. ':due', at, kind .. ' ' .. id)
  if redis.call('ZRANGE', POOL .. ':due', 0, 0)[1] == kind .. ' ' .. id then
    tell_leader('timer')
  end
end

-- Let tasks of a tenant, at most 100, begin at a time: until then they are delayed.
local function delay_until(at, tenant, ids)
  local timers = {}
  for place, id in ipairs(ids) do
    timers[2 * place - 1], timers[2 * place] = at, 'start ' .. id
  end
  redis.call('HINCRBY', POOL, 'delayed', redis.call('ZADD', POOL .. ':due', unpack(timers)))
  redis.call('SADD', tenant_key(tenant, 'delayed'), unpack(ids))
  if tonumber(redis.call('ZRANGE', POOL .. ':due', 0, 0, 'WITHSCORES')[2]) >= at then
    tell_leader('timer')
  end
end

local known_batch_wait

-- Let a batch task, which may begin in `delay_ms`, wait like others when it has waited for the pool's `batch_max_wait`.
local function promote_later(id, delay_ms)
  known_batch_wait = known_batch_wait or tonumber(redis.call('HGET', POOL, 'batch_max_wait_ms')) or 60000
  set_timer('promote', id, now + delay_ms + known_batch_wait)
end

-- Tell the leader that there is not enough room, now and then.
local function ask_for_room()
  local told = tonumber(redis.call('HGET', POOL, 'room_wanted_at')) or 0
  if now - told >= 100 or now < told then
    redis.call('HSET', POOL, 'room_wanted_at', now)
    tell_leader('room wanted')
  end
end

-- Tell workers with room, at most ten, that there are tasks by type; the leader, when there is not enough of it.
local function wake_workers(count)
  for _, found in ipairs(workers_with_room(10)) do
    if count > 0 then
      command(found.worker, {type = 'wake'})
      count = count - found.free
    end
  end
  if count > 0 then
    ask_for_room()
  end
end

-- -- leases: `worker estimated_ms reserved_tokens`, the task's own header line, and its rank --------------------------

local known_leases = {}

-- What a header line says; not to be changed.
local function head_in(line)
  return recall('head', line) or memorize('head', line, parse_head(line) or {})
end

-- What a lease says beside the rank, with the words of its task's header: one table for all that say the same, as those
-- do that were taken together. And the rank, as text.
local function parse_lease(text)
  local words, rank = string.match(text or '', '^(.*) (%S+)$')
  local lease = known_leases[words]
  if words and not lease then
    local worker, ms, tokens, line = string.match(words, '^(%S+) (%S+) (%S+) (task .*)$')
    local head = line and head_in(line)
    if not (head and head.reply_to) then
      return nil
    end
    lease = {worker = worker, ms = tonumber(ms), tokens = tonumber(tokens), reply_to = head.reply_to, agent = head.agent,
      type = head.type, tenant = head.tenant, lane = head.lane, later_us = head.later_us, options = head.options}
    known_leases[words] = lease
  end
  return lease, rank
end

local function read_lease(id)
  return parse_lease(redis.call('HGET', POOL .. ':leases', id))
end

-- A task waits no longer for tasks of its own; tells whether it did.
local function end_wait(worker, tenant, id)
  if redis.call('SREM', held(worker, 'waits'), id) == 0 then
    return false
  end
  redis.call('SREM', tenant_key(tenant, 'waits'), id)
  return true
end

local function end_lease(worker, id, tenant)
  redis.call('ZREM', held(worker, 'tasks'), id)
  redis.call('ZREM', held(worker, 'runs'), id)
  redis.call('SREM', held(worker, 'cancels'), id)
  redis.call('HDEL', POOL .. ':leases', id)
  if tenant then
    redis.call('SREM', tenant_key(tenant, 'tasks'), id)
    end_wait(worker, tenant, id)
    redis.call('DEL', POOL .. ':children:' .. id)
    let_go(tenant)
  end
end

-- -- ends -----------------------------------------------------------------------------------------------------------

-- The task that an idempotency key means, the digest of its input, and `shared` when another asked for it again.
local function read_key(digest)
  return string.match(redis.call('GET', POOL .. ':key:' .. digest) or '', '^(%S+) (%S+) ?(.*)$')
end

-- What hangs on a task's options ends with it: the life of its key, its timer, its parent's wait.
local function end_options(id, head)
  local digest, parent = option(head, 'key'), option(head, 'parent')
  if digest and read_key(digest) == id then
    local ttl = tonumber(redis.call('HGET', POOL, 'key_ttl_ms')) or 3600000
    redis.call('PEXPIRE', POOL .. ':key:' .. digest, ttl)
  end
  if option(head, 'expires') then
    redis.call('ZREM', POOL .. ':due', 'expire ' .. id)
  end
  if option(head, 'batch') then
    redis.call('ZREM', POOL .. ':due', 'promote ' .. id)
  end
  if parent then
    local children = POOL .. ':children:' .. parent
    if redis.call('SREM', children, id) == 1 and redis.call('EXISTS', children) == 0 then
      local lease, waiting = read_lease(parent), read_head(parent)
      if lease and waiting then
        end_wait(lease.worker, waiting.tenant, parent)
      end
    end
  end
end

-- What else is kept of a task goes when it has its outcome.
local function forget_unfinished(id, head, event)
  if head.options then
    end_options(id, head)
  end
  if has_attempts() and redis.call('HDEL', POOL .. ':attempts', id) == 1 then
    redis.call('DEL', POOL .. ':errors:' .. id)
  end
  tell_followers(id, event, '', true)
end

-- Replace a task by its outcome. The caller has checked that there is none, and has taken it out of its place.
local function conclude(id, head, outcome, event)
  redis.call('SET', task_key(id), outcome, 'PX', result_ttl())
  forget_unfinished(id, head, event)
end

local WRITES_MANY = (redis.VALKEY_VERSION_NUM or 0) >= 0x90100 -- 9.1
  or not redis.VALKEY_VERSION_NUM and (redis.REDIS_VERSION_NUM or 0) >= 0x80400 -- 8.4

-- Replace tasks by their outcomes, given as key, outcome, …: in one command where the server has it, which costs a
-- third.
local function write_outcomes(words)
  local ttl = result_ttl()
  if WRITES_MANY and #words > 2 then
    local count = #words / 2
    words[#words + 1] = 'PX'
    words[#words + 1] = ttl
    redis.call('MSETEX', count, unpack(words))
    return
  end
  for i = 1, #words, 2 do
    redis.call('SET', words[i], words[i + 1], 'PX', ttl)
  end
end

-- An entry of a reply: the outcome comes along when it is small, else it is fetched. Ids are plain words.
local function reply_entry(id, outcome)
  return '["' .. id .. '",' .. (#outcome <= 1400 and outcome or 'null') .. ']'
end

local function send_reply(reply_to, entries)
  if reply_to ~= '-' then
    publish(reply_to, '{"type":"tasks_done","tasks":[' .. table.concat(entries, ',') .. ']}')
  end
end

-- Record an outcome that no worker wrote, once: false when there is one already or the task is unknown. `begun`: as
-- `plain_outcome` takes it, 0 if not given.
local function finish_task(id, status, worker, kind, why, begun)
  local head = read_head(id)
  if not head then
    return false
  end
  local outcome = plain_outcome(id, status, worker, kind, why, begun or 0)
  conclude(id, head, outcome, 'task.' .. status)
  audit(id, head, status, worker, why)
  send_reply(head.reply_to, {reply_entry(id, outcome)})
  return head
end

-- Keep a task that will not be tried again, as it was submitted and with what went wrong each time.
local function bury(id, head, outcome, kind, tried)
  local letter = POOL .. ':letter:' .. id
  redis.call('HSET', letter, 'record', redis.call('GET', task_key(id)), 'outcome', outcome, 'kind', kind,
    'tenant', head.tenant, 'agent_type', head.type, 'agent_name', head.agent, 'died_at', now,
    'attempts', tried.attempts, 'crashes', tried.crashes, 'starts', tried.starts)
  local errors = redis.call('HGETALL', POOL .. ':errors:' .. id)
  if #errors > 0 then
    for i = 1, #errors, 2 do
      errors[i] = 'error:' .. errors[i]
    end
    redis.call('HSET', letter, unpack(errors))
    redis.call('DEL', POOL .. ':errors:' .. id)
  end
  redis.call('ZADD', POOL .. ':dead', now, id)
  local bound = tonumber(redis.call('HGET', POOL, 'max_dead')) or 10000
  local excess = redis.call('ZCARD', POOL .. ':dead') - bound
  if excess > 0 then
    for _, old in ipairs(redis.call('ZRANGE', POOL .. ':dead', 0, math.min(excess, 10) - 1)) do
      redis.call('ZREM', POOL .. ':dead', old)
      redis.call('DEL', POOL .. ':letter:' .. old)
    end
  end
  note('task.dead', head.agent ~= '-' and head.agent or '', '', id)
end

-- A worker died with this task on it: back to where it waits, and apart from others if it is suspect.
-- `blamed`: it was at work when the process ended. Three deaths that it was alone in are its last.
local function give_back_after_crash(id, worker, blamed, alone, reason)
  local head, _, rank = read_head(id), read_lease(id)
  local cancelled = redis.call('SISMEMBER', held(worker, 'cancels'), id) == 1
  end_lease(worker, id, head and head.tenant)
  if not head then
    return
  end
  if blamed == 'overdue' then
    local why = 'its time was over while it blocked its worker: ' .. reason
    finish_task(id, 'timed_out', worker, 'TaskTimedOut', why, 1)
    return
  end
  if cancelled then
    finish_task(id, 'cancelled', worker, 'TaskCancelled', 'cancelled on request', blamed ~= '' and 1 or 0)
    return
  end
  -- What it waited for belongs to an attempt that is over.
  redis.call('DEL', POOL .. ':children:' .. id)
  local tried = read_attempts(id)
  if blamed ~= '' then
    tried.crashes = tried.crashes + 1
    tried.alone = tried.alone + (alone and 1 or 0)
    if blamed == 'suspect' or tried.crashes > 1 then
      tried.suspect = 1
    end
    write_attempts(id, tried)
    note_error(id, 'crash ', tried.crashes, to_json({process_id = worker, at = now,
      error = {type = 'WorkerLost', message = reason}}))
  end
  if tried.alone >= 3 then
    local why = 'its worker died ' .. tried.alone .. ' times while it ran there alone: ' .. reason
    local outcome = plain_outcome(id, 'worker_lost', worker, 'WorkerLost', why, 0)
    bury(id, head, outcome, 'poison', tried)
    conclude(id, head, outcome, 'task.worker_lost')
    audit(id, head, 'worker_lost', worker, reason)
    send_reply(head.reply_to, {reply_entry(id, outcome)})
    return
  end
  enqueue(id, head, rank, tried.suspect == 1)
  tell_followers(id, 'task.given_back', reason)
  audit(id, head, 'given_back', worker, reason)
end
