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
-- ARGV[9…] id, agent's name or '', verdict, delay_ms, run_ms, tokens, attempt, outcome or error, audit line
--                         of each that ended; then names of idle pinned agents, at most 50.
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
--          id, record, attempt, suspect, tokens_per_task…} | {"gone"}
-- AGAIN    the same number gets the same tasks, as far as they are unfinished; an older one, which comes late, none

local worker, number = ARGV[4], tonumber(ARGV[5])
local key = process_key(worker)
local status, last, batch, labels, capacity, alone =
  unpack(redis.call('HMGET', key, 'status', 'claim_number', 'claim_batch', 'labels', 'capacity', 'alone'))
if not status or status == 'lost' then
  return {'gone'}
end
last = tonumber(last) or 0
local last_ended = 8 + 9 * ARGV[8]
local stale, mail, taken = {}, {}, {}
local has_attempts = redis.call('EXISTS', POOL .. ':attempts') == 1

local function is_known(id)
  return redis.call('HGET', POOL .. ':leases', id)
end

-- -- what ended ------------------------------------------------------------------------------------------------------

local replies, tenants, ids, lines, touched = {}, {}, {}, {}, {}

local function count_for(head, lease, i)
  local tally = tenants[head.tenant]
  if not tally then
    tally = {ids = {}, count = 0, ms = 0, tokens = 0, late_ms = 0, unreserved = 0, types = {}}
    tenants[head.tenant] = tally
  end
  tally.ids[#tally.ids + 1] = ARGV[i]
  local ms, tokens, verdict = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5]), ARGV[i + 2]
  tally.late_ms = tally.late_ms + (verdict == 'back' and 0 or ms) - lease.ms
  tally.unreserved = tally.unreserved + tokens - lease.tokens
  if verdict ~= 'back' and head.type ~= '-' then
    local by_type = tally.types[head.type] or {0, 0, 0}
    tally.types[head.type] = {by_type[1] + 1, by_type[2] + ms, by_type[3] + tokens}
    tally.count, tally.ms, tally.tokens = tally.count + 1, tally.ms + ms, tally.tokens + tokens
  end
end

local function settle(i, lease, cancels)
  local id, name, verdict, delay_ms, outcome = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 7]
  local head = read_head(id)
  ids[#ids + 1] = id
  if not head then
    return
  end
  count_for(head, lease, i)
  if ARGV[i + 8] ~= '' then
    lines[#lines + 1] = ARGV[i + 8]
  end
  local cancelled = cancels and redis.call('SREM', held(worker, 'cancels'), id) == 1
  if cancelled and (verdict == 'retry' or verdict == 'back') then
    verdict, outcome = 'done', plain_outcome('cancelled', worker, 'TaskCancelled', 'cancelled on request')
  end
  if verdict == 'retry' or verdict == 'back' then
    local tried = read_attempts(id)
    tried.suspect = 0
    if verdict == 'retry' then
      tried.attempts = tried.attempts + 1
      note_error(id, tried.attempts, outcome)
    elseif delay_ms > 0 then
      tried.starts = tried.starts + 1
    end
    if verdict == 'retry' or delay_ms > 0 or has_attempts then
      write_attempts(id, tried)
      has_attempts = true
    end
    if delay_ms > 0 then
      set_timer('start', id, now + delay_ms)
    else
      enqueue(id, head, lease.rank)
    end
    tell_followers(id, verdict == 'retry' and 'task.retried' or 'task.given_back', outcome)
  else
    if verdict == 'dead' then
      local tried = read_attempts(id)
      tried.attempts = tried.attempts + 1
      note_error(id, tried.attempts, outcome)
      bury(id, head, outcome, 'failed', tried)
    end
    conclude(id, head, outcome, result_ttl(), 'task.finished')
    if head.reply_to ~= '-' then
      replies[head.reply_to] = replies[head.reply_to] or {}
      table.insert(replies[head.reply_to], reply_entry(id, outcome))
    end
  end
  if name ~= '' then
    local agent = agent_key(name)
    local owner, task = unpack(redis.call('HMGET', agent, 'process_id', 'task_id'))
    if owner == worker and task == id then
      redis.call('HSET', agent, 'status', 'idle', 'task_id', '', 'last_used_at', now)
      redis.call('HINCRBY', agent, 'run_count', 1)
    end
    touched[#touched + 1] = name
  end
end

-- What a tenant's tasks took is weighed in; what they were charged too much or too little is corrected.
local function settle_tenant(tenant, tally)
  redis.call('SREM', tenant_key(tenant, 'tasks'), unpack(tally.ids))
  for _, id in ipairs(tally.ids) do
    end_wait(worker, tenant, id)
  end
  add_to_window(tenant, 'tokens', tally.unreserved)
  local usage = usage_of(tenant)
  if tally.count > 0 then
    local known, words = tenant_key(tenant, 'usage'), {}
    for type, sums in pairs(tally.types) do
      local ms, tokens = unpack(redis.call('HMGET', known, 'ms:' .. type, 'tokens:' .. type))
      words[#words + 1] = 'ms:' .. type
      words[#words + 1] = blend(tonumber(ms), sums[2] / sums[1], sums[1])
      if sums[3] > 0 or tokens then
        words[#words + 1] = 'tokens:' .. type
        words[#words + 1] = blend(tonumber(tokens), sums[3] / sums[1], sums[1])
      end
    end
    usage.ms = blend(usage.count > 0 and usage.ms or nil, tally.ms / tally.count, tally.count)
    usage.count, usage.types = usage.count + tally.count, {}
    redis.call('HSET', known, 'ms', usage.ms, 'count', usage.count, unpack(words))
    if tally.tokens > 0 then
      local tokens = tonumber(redis.call('HGET', known, 'tokens'))
      redis.call('HSET', known, 'tokens', blend(tokens, tally.tokens / tally.count, tally.count))
    end
    redis.call('EXPIRE', known, 604800)
  end
  if tally.late_ms ~= 0 then
    local tag = tonumber(redis.call('ZSCORE', POOL .. ':tenants', tenant)) or virtual_time()
    retag(tenant, tag + tally.late_ms / limits_of(tenant).weight)
  end
  let_go(tenant)
end

-- How many tasks end in a second, over some ten seconds.
local function measure_rate(count)
  local since, so_far, rate = unpack(redis.call('HMGET', POOL, 'rate_since', 'rate_count', 'rate'))
  since, so_far = tonumber(since) or now, (tonumber(so_far) or 0) + count
  if now - since >= 1000 then
    local latest = 1000 * so_far / (now - since)
    redis.call('HSET', POOL, 'rate', rate and rate * 0.7 + latest * 0.3 or latest, 'rate_since', now, 'rate_count', 0)
  else
    redis.call('HSET', POOL, 'rate_since', since, 'rate_count', so_far)
  end
end

local function take_in()
  local leases = {'HMGET', POOL .. ':leases'}
  for i = 9, last_ended, 9 do
    leases[#leases + 1] = ARGV[i]
  end
  leases = redis.call(unpack(leases))
  local cancels = redis.call('EXISTS', held(worker, 'cancels')) == 1
  for i = 9, last_ended, 9 do
    local lease = parse_lease(leases[(i - 9) / 9 + 1])
    if lease and lease.worker == worker then
      settle(i, lease, cancels)
    elseif not (ARGV[i + 2] == 'done' and redis.call('GET', task_key(ARGV[i])) == ARGV[i + 7]) then
      stale[#stale + 1] = ARGV[i]
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
  for reply_to, entries in pairs(replies) do
    send_reply(reply_to, entries)
  end
  if #lines > 0 then
    redis.call('XADD', POOL .. ':audit', '*', 'lines', table.concat(lines, '\n'))
  end
  if alone then
    alone = is_known(alone) and alone
    redis.call('HSET', key, 'alone', alone or '')
  end
  measure_rate(#ids)
end

-- -- what it takes ---------------------------------------------------------------------------------------------------

local function lease_all(found, set, tenant)
  local scores, words = {}, {}
  for _, task in ipairs(found) do
    scores[#scores + 1] = now
    scores[#scores + 1] = task.id
    words[#words + 1] = task.id
    words[#words + 1] = worker .. ' ' .. string.format('%.0f', task.rank) .. ' ' .. string.format('%.3f', task.ms)
      .. ' ' .. string.format('%.0f', task.tokens)
    redis.call('SADD', tenant_key(tenant, 'tasks'), task.id)
    taken[#taken + 1] = task
    tell_followers(task.id, 'task.started', worker)
  end
  redis.call('ZADD', held(worker, set), unpack(scores))
  redis.call('HSET', POOL .. ':leases', unpack(words))
end

-- Nothing is charged in advance: what it took counts when it ends.
local function lease_one(id, record, rank, set)
  local tenant = parse_head(record).tenant
  lease_all({{id = id, record = record, rank = rank, ms = 0, tokens = 0}}, set, tenant)
  if limits_of(tenant).requests_per_minute > 0 then
    add_to_window(tenant, 'requests', 1)
  end
end

local function is_suspect(id)
  return has_attempts and read_attempts(id).suspect == 1
end

local function is_busy()
  return redis.call('EXISTS', held(worker, 'tasks'), held(worker, 'runs')) > 0
end

local function run_alone(id)
  alone = id
  redis.call('HSET', key, 'alone', id)
end

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
    if is_busy() or #taken > 0 then
      redis.call('HSET', key, 'clearing', '1')
      return
    end
    run_alone(id)
  end
  redis.call('ZREM', mailbox, id)
  if record and parse_head(record) then
    lease_one(id, record, rank, 'runs')
    redis.call('HSET', agent, 'status', 'active', 'task_id', id)
  end
end

-- A suspect runs with nothing beside it. One worker at a time is cleared for those that wait, unless one is empty.
local function claim_suspect()
  if redis.call('EXISTS', POOL .. ':suspects') == 0 then
    return false
  end
  if is_busy() or #taken > 0 then
    local clearing = redis.call('HGET', POOL, 'clearing')
    if not clearing or clearing == worker or redis.call('ZSCORE', POOL .. ':processes', clearing) == false then
      redis.call('HSET', POOL, 'clearing', worker)
      return true
    end
    return false
  end
  local id, rank = unpack(redis.call('ZPOPMIN', POOL .. ':suspects'))
  redis.call('HDEL', POOL, 'clearing')
  local record = redis.call('GET', task_key(id))
  if record and parse_head(record) then
    run_alone(id)
    lease_one(id, record, now_us, 'tasks')
  end
  return true
end

local function hosts(lane)
  for label in string.gmatch(string.match(lane, '%+(.*)') or '', '[^+]+') do
    if not string.find(' ' .. (labels or '') .. ' ', ' ' .. label .. ' ', 1, true) then
      return false
    end
  end
  return true
end

local levels = {child = {}, urgent = {}, normal = {}, batch = {}}

-- The tenant whose turn it is in the lanes of a level: tenant, lane, tag.
local function next_turn(level)
  local best
  for _, lane in ipairs(levels[level]) do
    local tenant, tag = unpack(redis.call('ZRANGE', POOL .. ':turns:' .. lane, 0, 0, 'WITHSCORES'))
    tag = tonumber(tag)
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
    local type = record and string.match(record, '^task %S+ %S+ (%S+) ')
    if type then
      local ms, tokens = estimate(tenant, type)
      found[#found + 1] = {id = popped[2 * place - 1], record = record, rank = tonumber(popped[2 * place]), ms = ms,
        tokens = tokens}
      charge, reserved = charge + ms, reserved + tokens
    end
  end
  redis.call('HINCRBY', POOL, 'queued', -#popped / 2)
  local start = math.max(virtual_time(), tag)
  redis.call('HSET', POOL, 'virtual_time', string.format('%.6f', start))
  if redis.call('EXISTS', queue) == 0 then
    redis.call('ZREM', POOL .. ':turns:' .. lane, tenant)
  end
  retag(tenant, start + charge / limits.weight)
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
  for i = 9, last_ended, 9 do
    if ARGV[i + 2] == 'done' and redis.call('GET', task_key(ARGV[i])) ~= ARGV[i + 7] then
      stale[#stale + 1] = ARGV[i]
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
  if status == 'ready' and not (alone and alone ~= '') then
    for i = last_ended + 1, #ARGV do
      if not (alone and alone ~= '') then
        claim_mailbox(ARGV[i])
      end
    end
    if not (alone and alone ~= '') and tonumber(ARGV[6]) >= 0 and not claim_suspect() then
      claim_by_type()
      forget_idle_tenants()
    end
  end
  rescore(worker)
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
  local tried = has_attempts and read_attempts(task.id) or {attempts = 0, starts = 0, suspect = 0}
  local tenant = string.match(task.record, '^task %S+ %S+ %S+ (%S+)')
  for _, word in ipairs({task.id, task.record, tried.attempts + 1, tried.starts, limits_of(tenant).tokens_per_task}) do
    answer[#answer + 1] = word
  end
end
return answer
