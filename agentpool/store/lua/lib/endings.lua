-- What a worker hands in of tasks that ended. Needs base.lua, workers.lua, tenants.lua and tasks.lua.
--
-- Of a plain end (a task by type is done, and nobody follows it, and it was not tried before) little is done for each
-- task: those that were taken together share a lease table, so they are counted together, and what is written for each
-- is gathered and written for all.

local ended = {ids = {}, outcomes = {}, groups = {}, tallies = {}, replies = {}, stale = {}, agents = {}, returned = 0,
  has_cancels = false, has_held = false, waits_here = false}

-- What a tenant's tasks come to, of those that ended now.
local function tally_of(tenant)
  local tally = ended.tallies[tenant]
  if not tally then
    tally = {ids = {}, count = 0, ms = 0, tokens = 0, late_ms = 0, unreserved = 0, types = {}}
    ended.tallies[tenant] = tally
  end
  return tally
end

local function replies_to(channel)
  local replies = ended.replies[channel]
  if not replies then
    replies = {}
    ended.replies[channel] = replies
  end
  return replies
end

-- Count `count` executions of one lease that took `ms` and `tokens` together; those that go back count for nothing.
local function count_for(lease, counts, count, ms, tokens)
  local tally = tally_of(lease.tenant)
  tally.unreserved = tally.unreserved + tokens - count * lease.tokens
  if lease.type == '-' then
    return
  end
  tally.late_ms = tally.late_ms + (counts and ms or 0) - count * lease.ms
  if counts then
    local sums = tally.types[lease.type]
    if not sums then
      sums = {0, 0, 0}
      tally.types[lease.type] = sums
    end
    sums[1], sums[2], sums[3] = sums[1] + count, sums[2] + ms, sums[3] + tokens
    tally.count, tally.ms, tally.tokens = tally.count + count, tally.ms + ms, tally.tokens + tokens
  end
end

-- Count and keep what went wrong: an attempt, or a start of the agent for one.
local function count_failure(id, tried, has_begun, error)
  if has_begun then
    tried.attempts = tried.attempts + 1
    note_error(id, '', tried.attempts, error)
  else
    tried.starts = tried.starts + 1
    note_error(id, 'start ', tried.starts, error)
  end
end

-- A task goes back to where it waited, or waits for its next attempt.
local function put_back(lease, rank, id, verdict, delay_ms, error)
  local tried = read_attempts(id)
  tried.suspect = 0
  local has_failed = verdict == 'retry' or delay_ms > 0
  if has_failed then
    count_failure(id, tried, verdict == 'retry', error)
  end
  if has_failed or has_attempts() then
    write_attempts(id, tried)
  end
  if delay_ms > 0 then
    delay_until(now + delay_ms, lease.tenant, {id})
  else
    enqueue(id, lease, rank)
    ended.returned = ended.returned + (lease.agent == '-' and 1 or 0)
  end
  if ended.waits_here then
    redis.call('DEL', POOL .. ':children:' .. id) -- what it waited for belongs to an attempt that is over
  end
  tell_followers(id, verdict == 'retry' and 'task.retried' or 'task.given_back', error)
end

local function free_agent(worker, name, id)
  local agent = agent_key(name)
  local owner, running = unpack(redis.call('HMGET', agent, 'process_id', 'task_id'))
  if owner == worker and running == id then
    redis.call('HSET', agent, 'status', 'idle', 'task_id', '', 'last_used_at', now)
    redis.call('HINCRBY', agent, 'run_count', 1)
  end
  ended.agents[#ended.agents + 1] = name
end

local function keep_outcome(id, outcome, replies)
  local outcomes = ended.outcomes
  outcomes[#outcomes + 1] = task_key(id)
  outcomes[#outcomes + 1] = outcome
  replies[#replies + 1] = reply_entry(id, outcome)
end

local function finish(lease, id, verdict, outcome)
  if verdict == 'dead' or verdict == 'unstarted' then
    local tried = read_attempts(id)
    count_failure(id, tried, verdict == 'dead', outcome)
    bury(id, lease, outcome, 'failed', tried)
  end
  keep_outcome(id, outcome, replies_to(lease.reply_to))
  forget_unfinished(id, lease, 'task.finished')
end

-- Settle one task that this worker held, whatever became of it.
local function settle(lease, rank, id, words, outcome)
  local verdict, delay_ms, ms, tokens = string.match(words, '^%S+ (%S+) (%S+) (%S+) (%S+)$')
  if not verdict then
    verdict, delay_ms, ms, tokens = 'done', 0, words, 0
  end
  local ids = tally_of(lease.tenant).ids
  ids[#ids + 1] = id
  count_for(lease, verdict ~= 'back', 1, tonumber(ms), tonumber(tokens))
  if ended.has_cancels and redis.call('SREM', held(lease.worker, 'cancels'), id) == 1
      and (verdict == 'retry' or verdict == 'back') then
    local begun = verdict == 'retry' and 1 or 0
    verdict = 'done'
    outcome = plain_outcome(id, 'cancelled', lease.worker, 'TaskCancelled', 'cancelled on request', begun)
  end
  if verdict == 'retry' or verdict == 'back' then
    put_back(lease, rank, id, verdict, tonumber(delay_ms), outcome)
  else
    finish(lease, id, verdict, outcome)
  end
  if lease.agent ~= '-' then
    free_agent(lease.worker, lease.agent, id)
  end
end

-- What is shared by the plain ends of one lease.
local function group_of(lease)
  local group = {lease = lease, ids = tally_of(lease.tenant).ids, replies = replies_to(lease.reply_to), count = 0, ms = 0}
  lease.group = group
  ended.groups[#ended.groups + 1] = group
  return group
end

local function settle_plainly(lease, id, ms, outcome)
  local group = lease.group or group_of(lease)
  group.count, group.ms = group.count + 1, group.ms + ms
  group.ids[#group.ids + 1] = id
  keep_outcome(id, outcome, group.replies)
end

-- The means of a tenant's tasks, in all and by type, with those that ended now weighed in.
local function weigh_in(tenant, tally)
  local known, words, usage = tenant_key(tenant, 'usage'), {}, usage_of(tenant, next(tally.types))
  for type, sums in pairs(tally.types) do
    local ms, tokens = means_of(tenant, type)
    ms = blend(ms, sums[2] / sums[1], sums[1])
    words[#words + 1] = 'ms:' .. type
    words[#words + 1] = string.format('%.4f', ms)
    if sums[3] > 0 or tokens then
      tokens = blend(tokens, sums[3] / sums[1], sums[1])
      words[#words + 1] = 'tokens:' .. type
      words[#words + 1] = tokens
    end
    usage.types[type] = {ms, tokens}
  end
  if tally.tokens > 0 then
    usage.tokens = blend(usage.tokens, tally.tokens / tally.count, tally.count)
    words[#words + 1] = 'tokens'
    words[#words + 1] = usage.tokens
  end
  local before = usage.count
  usage.ms = blend(before > 0 and usage.ms or nil, tally.ms / tally.count, tally.count)
  usage.count = before + tally.count
  redis.call('HSET', known, 'ms', string.format('%.4f', usage.ms), 'count', usage.count, unpack(words))
  if math.floor(before / 100) < math.floor(usage.count / 100) or before == 0 then
    redis.call('EXPIRE', known, USAGE_TTL_S)
  end
end

-- What a tenant's tasks took is weighed in; what they were charged too much or too little is corrected.
local function settle_tenant(worker, tenant, tally)
  redis.call('SREM', tenant_key(tenant, 'tasks'), unpack(tally.ids))
  for _, id in ipairs(ended.waits_here and tally.ids or {}) do
    if end_wait(worker, tenant, id) then
      redis.call('DEL', POOL .. ':children:' .. id)
    end
  end
  add_to_window(tenant, 'tokens', tally.unreserved)
  if tally.count > 0 then
    weigh_in(tenant, tally)
  end
  if tally.late_ms ~= 0 then
    local tag = tag_of(tenant)
    set_tag(tenant, (tag > 0 and tag or virtual_time()) + tally.late_ms / limits_of(tenant).weight)
  end
  if ended.has_held and let_go(tenant) then
    with_a_place[#with_a_place + 1] = tenant
  end
end

-- How many tasks end in a second, over some ten seconds, and how long they took in the mean.
local function measure_rate(count)
  local rate, mean = pool_field('rate'), tonumber(pool_field('mean_ms'))
  local since, so_far = tonumber(pool_field('rate_since')) or now, (tonumber(pool_field('rate_count')) or 0) + count
  local runs, ms = 0, 0
  for _, tally in pairs(ended.tallies) do
    runs, ms = runs + tally.count, ms + tally.ms
  end
  local words = {'rate_since', since, 'rate_count', so_far}
  if now - since >= 1000 then
    local latest = 1000 * so_far / (now - since)
    words = {'rate', rate and rate * 0.7 + latest * 0.3 or latest, 'rate_since', now, 'rate_count', 0}
  end
  if runs > 0 then
    words[#words + 1] = 'mean_ms'
    words[#words + 1] = string.format('%.4f', blend(mean, ms / runs, runs))
  end
  redis.call('HSET', POOL, unpack(words))
end

-- Tell whether what a worker says of a task that it does not hold is what was recorded: then this is a repeat.
local function is_recorded(id, words, outcome)
  return (tonumber(words) or string.find(words, ' done ', 1, true)) and redis.call('GET', task_key(id)) == outcome
end

-- Write down what was executed: a line each, without those of stale tasks, whose ends are not what they say.
local function audit_all(ids_at, count, text)
  if #ended.stale > 0 then
    local stale, lines, place = {}, {}, ids_at
    for _, id in ipairs(ended.stale) do
      stale[id] = true
    end
    for line in string.gmatch(text .. '\n', '([^\n]*)\n') do
      lines[#lines + 1] = not stale[ARGV[place]] and line or nil
      place = place + 1
    end
    text = table.concat(lines, '\n')
  end
  if text ~= '' then
    redis.call('XADD', POOL .. ':audit', '*', 'lines', text)
  end
end

-- Look once for what is seldom there, and then looked for with each task. True when nothing is.
local function look_around(worker)
  if redis.call('EXISTS', held(worker, 'cancels'), held(worker, 'waits'), POOL .. ':held', POOL .. ':attempts',
      POOL .. ':followed', POOL .. ':suspects', POOL .. ':pending') == 0 then
    tried_again, followed = false, false
    return true
  end
  ended.has_cancels = redis.call('EXISTS', held(worker, 'cancels')) == 1
  ended.waits_here = redis.call('EXISTS', held(worker, 'waits')) == 1
  ended.has_held = redis.call('EXISTS', POOL .. ':held') == 1
  return false
end

-- Settle `count` tasks: in ARGV stand from `ids_at` on their ids, then the words, then the outcomes of each, and then
-- the lines of their audit.
local function take_in(worker, ids_at, count)
  local words_at, outcomes_at = ids_at + count, ids_at + 2 * count
  local leases, settled = redis.call('HMGET', POOL .. ':leases', unpack(ARGV, ids_at, words_at - 1)), {}
  local is_ordinary = not (ended.has_cancels or has_attempts() or has_followers())
  for place = 0, count - 1 do
    local id, words, outcome = ARGV[ids_at + place], ARGV[words_at + place], ARGV[outcomes_at + place]
    local lease, rank = parse_lease(leases[place + 1])
    if not lease or lease.worker ~= worker or settled[id] then
      if settled[id] or not is_recorded(id, words, outcome) then
        ended.stale[#ended.stale + 1] = id
      end
    else
      settled[id] = true
      ended.ids[#ended.ids + 1] = id
      local ms = is_ordinary and lease.agent == '-' and not lease.options and tonumber(words)
      if ms then
        settle_plainly(lease, id, ms, outcome)
      else
        settle(lease, rank, id, words, outcome)
      end
    end
  end
  if #ended.ids == 0 then
    return
  end
  write_outcomes(ended.outcomes)
  redis.call('ZREM', held(worker, 'tasks'), unpack(ended.ids))
  if #ended.agents > 0 then
    redis.call('ZREM', held(worker, 'runs'), unpack(ended.ids))
  end
  redis.call('HDEL', POOL .. ':leases', unpack(ended.ids))
  for _, group in ipairs(ended.groups) do
    count_for(group.lease, true, group.count, group.ms, 0)
  end
  local tenants = {}
  for tenant in pairs(ended.tallies) do
    tenants[#tenants + 1] = tenant
  end
  read_tags(tenants)
  for tenant, tally in pairs(ended.tallies) do
    settle_tenant(worker, tenant, tally)
  end
  for reply_to, entries in pairs(ended.replies) do
    send_reply(reply_to, entries)
  end
  audit_all(ids_at, count, ARGV[outcomes_at + count])
  measure_rate(#ended.ids)
end
