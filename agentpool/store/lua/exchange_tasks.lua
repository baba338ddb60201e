-- A worker hands in what ended and takes new tasks: one from the mailbox of each idle agent it names, and tasks by type.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  number         of this exchange, above all earlier ones of the worker
-- ARGV[6]  room           tasks by type at most, for free slots; -1: none are wanted
-- ARGV[7]  prefetch       tasks beyond the slots at most, of tenants whose tasks are short
-- ARGV[8]  ended          how many ended, at most 50
-- ARGV[9…] words, outcome or error, audit line of each that ended: `id agent-or-- verdict delay_ms run_ms tokens`; then
--                         names of idle pinned agents, at most 50.
--                         Verdicts: done; dead, for the dead letters; retry after the delay; back, not counted
-- BUILDS   process:{w}  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs  pool:{p}:worker:{w}:cancels
--          pool:{p}:worker:{w}:waits  pool:{p}:worker:{w}:agents  pool:{p}:leases  pool:{p}:lanes
--          pool:{p}:lane:{lane}:{t}  pool:{p}:turns:{lane}  pool:{p}:mailbox:{n}  agent:{p}/{n}  task:{p}/{id}
--          tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits  tenant:{p}:{t}:usage  tenant:{p}:{t}:tokens
--          tenant:{p}:{t}:requests  tenant:{p}:{t}:mail  pool:{p}:tenants  pool:{p}:held  pool:{p}:limits  pool:{p}:due
--          pool:{p}:attempts  pool:{p}:errors:{id}  pool:{p}:dead  pool:{p}:letter:{id}  pool:{p}:suspects
--          pool:{p}:children:{id}  pool:{p}:key:{digest}  pool:{p}:followed  pool:{p}:trail:{id}  pool:{p}:audit
--          pool:{p}:events  pool:{p}:pending  pool:{p}:processes
-- RETURNS  {"ok", tenants with a turn, {ids that ended too late}, {name, tasks in its mailbox, …},
--          id, record, `attempt starts tokens_per_task` or ''…} | {"gone"}
-- AGAIN    the same number gets the same tasks, as far as they are unfinished; an older one, which comes late, none

local worker, number = ARGV[4], tonumber(ARGV[5])
local key = process_key(worker)
local status, last, batch, labels, capacity, alone, passed = unpack(redis.call('HMGET', key, 'status', 'claim_number',
  'claim_batch', 'labels', 'capacity', 'alone', 'passed'))
if not status or status == 'lost' then
  return {'gone'}
end
last = tonumber(last) or 0
local last_ended = 8 + 3 * ARGV[8]
local stale, mail, taken = {}, {}, {}
local waits_here = redis.call('EXISTS', held(worker, 'waits')) == 1
local has_held = redis.call('EXISTS', POOL .. ':held') == 1

-- -- what ended ------------------------------------------------------------------------------------------------------

local replies, tenants, ids, lines, touched, returned = {}, {}, {}, {}, {}, 0

local function count_for(lease, id, counts, ms, tokens)
  local tally = tenants[lease.tenant]
  if not tally then
    tally = {ids = {}, count = 0, ms = 0, tokens = 0, late_ms = 0, unreserved = 0, types = {}}
    tenants[lease.tenant] = tally
  end
  tally.ids[#tally.ids + 1] = id
  if lease.type ~= '-' then
    tally.late_ms = tally.late_ms + (counts and ms or 0) - lease.ms
  end
  tally.unreserved = tally.unreserved + tokens - lease.tokens
  if counts and lease.type ~= '-' then
    local sums = tally.types[lease.type]
    if not sums then
      sums = {0, 0, 0}
      tally.types[lease.type] = sums
    end
    sums[1], sums[2], sums[3] = sums[1] + 1, sums[2] + ms, sums[3] + tokens
    tally.count, tally.ms, tally.tokens = tally.count + 1, tally.ms + ms, tally.tokens + tokens
  end
end

-- A task goes back to where it waited, or waits for its next attempt.
local function put_back(lease, id, verdict, delay_ms, error)
  local tried = read_attempts(id)
  tried.suspect = 0
  if verdict == 'retry' then
    tried.attempts = tried.attempts + 1
    note_error(id, '', tried.attempts, error)
  elseif delay_ms > 0 then
    tried.starts = tried.starts + 1
  end
  if verdict == 'retry' or delay_ms > 0 or has_attempts() then
    write_attempts(id, tried)
  end
  if delay_ms > 0 then
    set_timer('start', id, now + delay_ms)
  else
    enqueue(id, lease, lease.rank)
    returned = returned + (lease.agent == '-' and 1 or 0)
  end
  if waits_here then
    redis.call('DEL', POOL .. ':children:' .. id) -- what it waited for belongs to an attempt that is over
  end
  tell_followers(id, verdict == 'retry' and 'task.retried' or 'task.given_back', error)
end

local function free_agent(name, id)
  local agent = agent_key(name)
  local owner, running = unpack(redis.call('HMGET', agent, 'process_id', 'task_id'))
  if owner == worker and running == id then
    redis.call('HSET', agent, 'status', 'idle', 'task_id', '', 'last_used_at', now)
    redis.call('HINCRBY', agent, 'run_count', 1)
  end
  touched[#touched + 1] = name
end

-- Settle one task that this worker held: `words` are its verdict, delay_ms, run_ms and tokens.
local function settle(lease, id, words, outcome, line, cancels)
  local verdict, delay_ms, ms, tokens = string.match(words, ' (%S+) (%S+) (%S+) (%S+)$')
  local goes_back = verdict == 'retry' or verdict == 'back'
  ids[#ids + 1] = id
  count_for(lease, id, verdict ~= 'back', tonumber(ms), tonumber(tokens))
  if line ~= '' then
    lines[#lines + 1] = line
  end
  if cancels and redis.call('SREM', held(worker, 'cancels'), id) == 1 and goes_back then
    goes_back, outcome = false, plain_outcome('cancelled', worker, 'TaskCancelled', 'cancelled on request')
  end
  if goes_back then
    put_back(lease, id, verdict, tonumber(delay_ms), outcome)
  else
    if verdict == 'dead' then
      local tried = read_attempts(id)
      tried.attempts = tried.attempts + 1
      note_error(id, '', tried.attempts, outcome)
      bury(id, lease, outcome, 'failed', tried)
    end
    conclude(id, lease, outcome, result_ttl(), 'task.finished')
    if lease.reply_to ~= '-' then
      local pieces = replies[lease.reply_to]
      if not pieces then
        pieces = {}
        replies[lease.reply_to] = pieces
      end
      add_to_reply(pieces, id, outcome)
    end
  end
  if lease.agent ~= '-' then
    free_agent(lease.agent, id)
  end
end

-- What a tenant's tasks took is weighed in; what they were charged too much or too little is corrected.
local function settle_tenant(tenant, tally)
  redis.call('SREM', tenant_key(tenant, 'tasks'), unpack(tally.ids))
  for _, id in ipairs(waits_here and tally.ids or {}) do
    if redis.call('SREM', held(worker, 'waits'), id) == 1 then
      redis.call('SREM', tenant_key(tenant, 'waits'), id)
      redis.call('DEL', POOL .. ':children:' .. id)
    end
  end
  add_to_window(tenant, 'tokens', tally.unreserved)
  local usage = usage_of(tenant)
  if tally.count > 0 then
    local known, words = tenant_key(tenant, 'usage'), {}
    for type, sums in pairs(tally.types) do
      local ms, tokens = unpack(redis.call('HMGET', known, 'ms:' .. type, 'tokens:' .. type))
      words[#words + 1] = 'ms:' .. type
      words[#words + 1] = string.format('%.4f', blend(tonumber(ms), sums[2] / sums[1], sums[1]))
      if sums[3] > 0 or tokens then
        words[#words + 1] = 'tokens:' .. type
        words[#words + 1] = blend(tonumber(tokens), sums[3] / sums[1], sums[1])
      end
    end
    if tally.tokens > 0 then
      local tokens = tonumber(redis.call('HGET', known, 'tokens'))
      words[#words + 1] = 'tokens'
      words[#words + 1] = blend(tokens, tally.tokens / tally.count, tally.count)
    end
    local before = usage.count
    usage.ms = blend(before > 0 and usage.ms or nil, tally.ms / tally.count, tally.count)
    usage.count, usage.types = before + tally.count, {}
    redis.call('HSET', known, 'ms', string.format('%.4f', usage.ms), 'count', usage.count, unpack(words))
    if math.floor(before / 100) < math.floor(usage.count / 100) or before == 0 then
      redis.call('EXPIRE', known, 604800)
    end
  end
  if tally.late_ms ~= 0 then
    tags[tenant] = (tag_of(tenant) or virtual_time()) + tally.late_ms / limits_of(tenant).weight
  end
  if has_held then
    let_go(tenant)
  end
end

-- How many tasks end in a second, over some ten seconds, and how long they took in the mean.
local function measure_rate(count)
  local since, so_far, rate, mean = unpack(redis.call('HMGET', POOL, 'rate_since', 'rate_count', 'rate', 'mean_ms'))
  since, so_far = tonumber(since) or now, (tonumber(so_far) or 0) + count
  local runs, ms = 0, 0
  for _, tally in pairs(tenants) do
    runs, ms = runs + tally.count, ms + tally.ms
  end
  local words = {'rate_since', since, 'rate_count', so_far}
  if now - since >= 1000 then
    local latest = 1000 * so_far / (now - since)
    words = {'rate', rate and rate * 0.7 + latest * 0.3 or latest, 'rate_since', now, 'rate_count', 0}
  end
  if runs > 0 then
    words[#words + 1] = 'mean_ms'
    words[#words + 1] = string.format('%.4f', blend(tonumber(mean), ms / runs, runs))
  end
  redis.call('HSET', POOL, unpack(words))
end

-- Tell whether what a worker says of a task that it does not hold is what was recorded: then this is a repeat.
local function is_recorded(id, words, outcome)
  return string.find(words, ' done ', 1, true) and redis.call('GET', task_key(id)) == outcome
end

local function take_in()
  local held_ids, wanted = {}, {'HMGET', POOL .. ':leases'}
  for i = 9, last_ended, 3 do
    local id = string.match(ARGV[i], '^%S+')
    held_ids[#held_ids + 1] = id
    wanted[#wanted + 1] = id
  end
  local leases = redis.call(unpack(wanted))
  local cancels = redis.call('EXISTS', held(worker, 'cancels')) == 1
  local settled = {}
  for place, id in ipairs(held_ids) do
    local i = 6 + 3 * place
    local lease = not settled[id] and parse_lease(leases[place])
    if lease and lease.worker == worker then
      settled[id] = true
      settle(lease, id, ARGV[i], ARGV[i + 1], ARGV[i + 2], cancels)
    elseif not is_recorded(id, ARGV[i], ARGV[i + 1]) then
      stale[#stale + 1] = id
    end
  end
  if #ids == 0 then
    return
  end
  redis.call('ZREM', held(worker, 'tasks'), unpack(ids))
  redis.call('ZREM', held(worker, 'runs'), unpack(ids))
  redis.call('HDEL', POOL .. ':leases', unpack(ids))
  for tenant, tally in pairs(tenants) do
    settle_tenant(tenant, tally)
  end
  write_turns()
  for reply_to, entries in pairs(replies) do
    send_reply(reply_to, entries)
  end
  if #lines > 0 then
    redis.call('XADD', POOL .. ':audit', '*', 'lines', table.concat(lines, '\n'))
  end
  measure_rate(#ids)
end

-- -- what it takes ---------------------------------------------------------------------------------------------------

local leased = {tasks = {}, runs = {}, words = {}, dequeued = 0}

local function lease_all(found, set, tenant)
  local scores, words, ids = leased[set], leased.words, {}
  for place, task in ipairs(found) do
    scores[#scores + 1] = now
    scores[#scores + 1] = task.id
    words[#words + 1] = task.id
    words[#words + 1] = string.format('%s %.0f %.3f %.0f ', worker, task.rank, task.ms, task.tokens) .. task.line
    ids[place] = task.id
    taken[#taken + 1] = task
    tell_followers(task.id, 'task.started', worker)
  end
  redis.call('SADD', tenant_key(tenant, 'tasks'), unpack(ids))
end

-- Write down all that was taken.
local function write_leases()
  for _, set in ipairs({'tasks', 'runs'}) do
    if #leased[set] > 0 then
      redis.call('ZADD', held(worker, set), unpack(leased[set]))
    end
  end
  if #leased.words > 0 then
    redis.call('HSET', POOL .. ':leases', unpack(leased.words))
  end
  if leased.dequeued > 0 then
    redis.call('HINCRBY', POOL, 'queued', -leased.dequeued)
  end
end

-- Nothing is charged in advance: what it took counts when it ends.
local function lease_one(id, record, rank, set)
  local line, tenant = string.match(record, '^(task %S+ %S+ %S+ (%S+) [^\n]*)')
  lease_all({{id = id, record = record, line = line, rank = rank, ms = 0, tokens = 0}}, set, tenant)
  if limits_of(tenant).requests_per_minute > 0 then
    add_to_window(tenant, 'requests', 1)
  end
end

local function is_suspect(id)
  return read_attempts(id).suspect == 1
end

-- Whether anything is at work here; what waits for tasks of its own is not, and those may be what wants to run alone.
local function is_busy()
  local tasks = redis.call('ZCARD', held(worker, 'tasks')) + redis.call('ZCARD', held(worker, 'runs'))
  return tasks > redis.call('SCARD', held(worker, 'waits'))
end

local function run_alone(id)
  alone = id
  redis.call('HSET', key, 'alone', id)
end

-- True when what it holds has to wait until nothing else runs here.
local function claim_mailbox(name)
  local agent = prefix .. 'agent:' .. pool .. '/' .. name
  local owner, state, tenant = unpack(redis.call('HMGET', agent, 'process_id', 'status', 'tenant'))
  if owner ~= worker or state ~= 'idle' then
    return
  end
  local mailbox = POOL .. ':mailbox:' .. name
  local id, rank = unpack(redis.call('ZRANGE', mailbox, 0, 0, 'WITHSCORES'))
  if not id then
    return
  end
  local allowed, wait = allowance(tenant)
  if allowed == 0 then
    -- It is woken when the tenant may go on.
    redis.call('SADD', tenant_key(tenant, 'mail'), name)
    hold(tenant, wait)
    return
  end
  local record = redis.call('GET', task_key(id))
  if record and is_suspect(id) then
    if is_busy() then
      return true
    end
    run_alone(id)
  end
  redis.call('ZREM', mailbox, id)
  if record and parse_head(record) then
    lease_one(id, record, rank, 'runs')
    redis.call('HSET', agent, 'status', 'active', 'task_id', id)
  end
end

local function hosts(lane)
  for label in string.gmatch(string.match(lane, '%+(.*)') or '', '[^+]+') do
    if not string.find(' ' .. (labels or '') .. ' ', ' ' .. label .. ' ', 1, true) then
      return false
    end
  end
  return true
end

-- The suspect that has waited longest, of those that may run here.
local function next_suspect()
  if redis.call('SCARD', held(worker, 'agents')) >= (tonumber(capacity) or 0) then
    return nil
  end
  for _, id in ipairs(redis.call('ZRANGE', POOL .. ':suspects', 0, 19)) do
    local head = read_head(id)
    if not head then
      redis.call('ZREM', POOL .. ':suspects', id)
    elseif hosts(head.lane) and allowance(head.tenant) > 0 then
      return id
    end
  end
end

-- A suspect runs with nothing beside it. One worker at a time is cleared for those that wait, unless one is empty.
-- True when nothing else may begin here.
local function claim_suspect()
  if redis.call('EXISTS', POOL .. ':suspects') == 0 then
    return false
  end
  local id, clearing = next_suspect(), redis.call('HGET', POOL, 'clearing')
  if not id or tonumber(ARGV[6]) < 0 then
    if clearing == worker and not id then
      redis.call('HDEL', POOL, 'clearing')
    end
    return id and clearing == worker
  elseif not is_busy() then
    redis.call('ZREM', POOL .. ':suspects', id)
    redis.call('HDEL', POOL, 'clearing')
    run_alone(id)
    lease_one(id, redis.call('GET', task_key(id)), now_us, 'tasks')
    return true
  elseif not clearing or clearing == worker or not redis.call('ZSCORE', POOL .. ':processes', clearing) then
    redis.call('HSET', POOL, 'clearing', worker)
    return true
  end
  return false
end

-- Take from the mailboxes of idle agents. Those that are passed over, because what runs here shall be alone, are
-- looked at again by the next exchange, whether it names them or not.
local function claim_mail(is_clear)
  local names, left, first = {}, {}, nil
  for name in string.gmatch(passed or '', '%S+') do
    names[#names + 1] = name
  end
  for i = last_ended + 1, #ARGV do
    names[#names + 1] = ARGV[i]
  end
  for _, name in ipairs(names) do
    if not is_clear or alone or first then
      left[#left + 1] = name
    elseif claim_mailbox(name) then
      first = name
    end
  end
  local words = table.concat({first or '', unpack(left)}, ' ')
  if words ~= (passed or '') then
    redis.call('HSET', key, 'passed', words)
  end
  return not first
end

local levels = {child = {}, urgent = {}, normal = {}, batch = {}}

-- The tenant whose turn it is in a lane, and its tag. One that was served in another lane meanwhile has moved.
local function first_of(lane)
  while true do
    local tenant, tag = unpack(redis.call('ZRANGE', POOL .. ':turns:' .. lane, 0, 0, 'WITHSCORES'))
    tag = tonumber(tag)
    if not tenant or not tags[tenant] or tags[tenant] < tag + 0.001 then
      return tenant, tag
    end
    redis.call('ZADD', POOL .. ':turns:' .. lane, string.format('%.6f', tags[tenant]), tenant)
  end
end

-- The tenant whose turn it is in the lanes of a level: tenant, lane, tag.
local function next_turn(level)
  local best
  for _, lane in ipairs(levels[level]) do
    local tenant, tag = first_of(lane)
    if tenant and (not best or tag < best[3]) then
      best = {tenant, lane, tag}
    end
  end
  return best
end

-- Serve the tenant whose turn it is, at most `most` tasks; returns how many, or nil when it could not be served.
local function visit(turn, most)
  local tenant, lane, tag = unpack(turn)
  local queue, limits, usage = lane_key(lane, tenant), limits_of(tenant), usage_of(tenant)
  local allowed, wait = allowance(tenant)
  if allowed == 0 then
    hold(tenant, wait)
    return nil
  end
  -- Those whose tasks take long are served one by one, so that nobody is far ahead for as long as they take.
  local quantum = math.max(1, math.floor(50 * limits.weight / math.max(usage.ms, 0.001)))
  local count = math.min(most, allowed, math.ceil(8 * limits.weight), quantum)
  local popped, keys, found, charge, reserved = redis.call('ZPOPMIN', queue, count), {'MGET'}, {}, 0, 0
  for i = 1, #popped, 2 do
    keys[#keys + 1] = task_key(popped[i])
  end
  local records = #keys > 1 and redis.call(unpack(keys)) or {}
  for place, record in ipairs(records) do
    local line, type = string.match(record or '', '^(task %S+ %S+ (%S+) [^\n]*)')
    if type then
      local ms, tokens = estimate(tenant, type)
      found[#found + 1] = {id = popped[2 * place - 1], record = record, line = line, rank = tonumber(popped[2 * place]),
        ms = ms, tokens = tokens}
      charge, reserved = charge + ms, reserved + tokens
    end
  end
  leased.dequeued = leased.dequeued + #popped / 2
  local start = math.max(virtual_time(), tag)
  present_time = start
  tags[tenant] = start + charge / limits.weight
  if #popped / 2 < count or redis.call('EXISTS', queue) == 0 then
    redis.call('ZREM', POOL .. ':turns:' .. lane, tenant)
  else
    redis.call('ZADD', POOL .. ':turns:' .. lane, string.format('%.6f', tags[tenant]), tenant)
  end
  if #found > 0 then
    lease_all(found, 'tasks', tenant)
    add_to_window(tenant, 'tokens', reserved)
    if limits.requests_per_minute > 0 then
      add_to_window(tenant, 'requests', #found)
    end
  end
  return #found
end

-- Serve one level until `most` are taken; `quick`: only tenants whose tasks take less than 5 ms.
local function serve(level, most, quick)
  local got = 0
  for _ = 1, 2 * most + 20 do
    local turn = got < most and next_turn(level)
    if not turn or quick and (usage_of(turn[1]).count < 8 or usage_of(turn[1]).ms >= 5) then
      break
    end
    got = got + (visit(turn, most - got) or 0)
  end
  return got
end

-- Urgent tasks go first, but leave one claim in eight to the others while there are any.
local function serve_urgent_and_normal(most, quick)
  local got = 0
  if #levels.urgent == 0 then
    return serve('normal', most, quick)
  end
  while got < most do
    local count = 0
    if next_turn('urgent') and next_turn('normal') then
      local turn = tonumber(redis.call('HGET', POOL, 'turn')) or 0
      count = turn % 8 == 7 and serve('normal', 1, quick) or serve('urgent', math.min(most - got, 7 - turn % 8), quick)
      redis.call('HSET', POOL, 'turn', (turn + count) % 8)
    end
    if count == 0 then
      count = serve('urgent', most - got, quick)
    end
    if count == 0 then
      return got + serve('normal', most - got, quick)
    end
    got = got + count
  end
  return got
end

local function claim_by_type()
  for _, lane in ipairs(lanes()) do
    if hosts(lane) then
      table.insert(levels[string.match(lane, '^%a+')], lane)
    end
  end
  local tasks = redis.call('ZCARD', held(worker, 'tasks'))
  local free = (tonumber(capacity) or 0) - redis.call('SCARD', held(worker, 'agents')) - tasks
  -- Each task that waits for tasks of its own lends its slot to such tasks.
  local got = serve('child', math.min(50, math.max(0, free + redis.call('SCARD', held(worker, 'waits')))))
  if alone and alone ~= '' then
    return -- it waits for such tasks, and runs alone again afterwards
  end
  local room = math.min(tonumber(ARGV[6]), free, 50) - got
  if room > 0 then
    local count = serve_urgent_and_normal(room)
    if count < room then
      count = count + serve('batch', room - count)
    end
    got, room = got + count, room - count
  end
  local more = math.min(tonumber(ARGV[7]), 50 - got)
  if room <= 0 and more > 0 then
    serve_urgent_and_normal(more, true)
  end
end

-- What a tenant has used no more of, so that its turn begins at the present virtual time anyway, is forgotten.
local function forget_idle_tenants()
  local past = redis.call('ZRANGEBYSCORE', POOL .. ':tenants', '-inf',
    '(' .. string.format('%.6f', virtual_time()), 'LIMIT', 0, 10)
  if #past > 0 then
    redis.call('ZREM', POOL .. ':tenants', unpack(past))
  end
end

-- -- the exchange ----------------------------------------------------------------------------------------------------

if number == last then
  for i = 9, last_ended, 3 do
    local id, name = string.match(ARGV[i], '^(%S+) (%S+)')
    if string.find(ARGV[i], ' done ', 1, true) and not is_recorded(id, ARGV[i], ARGV[i + 1]) then
      stale[#stale + 1] = id
    elseif name ~= '-' then
      touched[#touched + 1] = name
    end
  end
  for id in string.gmatch(batch or '', '%S+') do
    local lease = read_lease(id)
    if lease and lease.worker == worker then
      taken[#taken + 1] = {id = id, record = redis.call('GET', task_key(id))}
    end
  end
elseif number > last then
  if last_ended > 8 then
    take_in()
    if redis.call('EXISTS', POOL .. ':pending') == 1 then
      fill(worker, 50)
    end
  end
  -- It may have ended by another hand than this worker's.
  alone = alone ~= '' and alone
  if alone and (read_lease(alone) or {}).worker ~= worker then
    alone = false
    redis.call('HSET', key, 'alone', '')
  end
  -- While it waits for tasks of its own it is not at work, and those may be what wants to run.
  alone = alone and redis.call('SISMEMBER', held(worker, 'waits'), alone) == 0 and alone
  if status == 'ready' then
    local takes_types = tonumber(ARGV[6]) >= 0
    local is_clear = alone or not claim_suspect()
    if claim_mail(is_clear) and is_clear and not alone and takes_types then
      claim_by_type()
      forget_idle_tenants()
    end
  end
  write_leases()
  write_turns()
  if present_time then
    redis.call('HSET', POOL, 'virtual_time', string.format('%.6f', present_time))
  end
  rescore(worker)
  if returned > 0 then
    wake_workers(returned) -- others, who may have room for what this one could not begin
  end
  local names = {}
  for place, task in ipairs(taken) do
    names[place] = task.id
  end
  redis.call('HSET', key, 'claim_number', number, 'claim_batch', table.concat(names, ' '))
end

local waiting = redis.call('ZCARD', POOL .. ':suspects')
for _, lane in ipairs(lanes()) do
  if hosts(lane) then
    waiting = waiting + redis.call('ZCARD', POOL .. ':turns:' .. lane)
  end
end
for _, name in ipairs(touched) do
  mail[#mail + 1] = name
  mail[#mail + 1] = redis.call('ZCARD', POOL .. ':mailbox:' .. name)
end
local answer = {'ok', waiting, stale, mail}
for _, task in ipairs(taken) do
  local count = #answer
  answer[count + 1], answer[count + 2], answer[count + 3] = task.id, task.record, ''
  local tokens = limits_of(string.match(task.record, '^task %S+ %S+ %S+ (%S+)')).tokens_per_task
  if has_attempts() or tokens > 0 then
    local tried = read_attempts(task.id)
    answer[count + 3] = (tried.attempts + 1) .. ' ' .. tried.starts .. ' ' .. tokens
  end
end
return answer
