-- Accept tasks for one agent or one type, all or none: their records first, then their queue, then hints to workers.
--
-- @include base workers tenants tasks agents claiming
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  agent          name of the pinned agent, or empty: any agent of the type
-- ARGV[5]  type           of the agent, or empty with a pinned one
-- ARGV[6]  tenant         of a task by type; for one agent, its own counts
-- ARGV[7]  lane           urgent, normal, batch or child, and after `+` each label that a worker must have
-- ARGV[8]  later_us       added to the time by which a task by type has its turn; a mailbox is first in, first out
-- ARGV[9]  options        `name=value` words: delay, expires in ms; key and input, digests, with one task; parent, the
--                         task that waits for these; sticky, whose worker is to be preferred; limits: `reject`, or
--                         `total` for all that it holds. And `batch` alone: after the pool's `batch_max_wait` they
--                         wait like others
-- ARGV[10…] id, record    of each task in order, at most 100; records are header line and JSON, as records.py says
-- BUILDS   pool:{p}:types  agent:{p}/{n}  task:{p}/{id}  pool:{p}:mailbox:{n}  pool:{p}:lane:{lane}:{t}
--          pool:{p}:lanes  pool:{p}:turns:{lane}  pool:{p}:processes  pool:{p}:ended:{n}  process:{w}  pool:{p}:due
--          pool:{p}:key:{digest}  pool:{p}:children:{id}  pool:{p}:labels  pool:{p}:limits  pool:{p}:tenants
--          pool:{p}:held  pool:{p}:affinity  pool:{p}:leases  tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits
--          tenant:{p}:{t}:tokens  tenant:{p}:{t}:requests  tenant:{p}:{t}:usage  pool:{p}:worker:{w}:waits
--          tenant:{p}:{t}:mail  pool:{p}:suspects  pool:{p}:attempts  pool:{p}:followed  pool:{p}:trail:{id}
--          pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs  tenant:{p}:{t}:delayed
--          tenant:{p}:{t}:agents
-- RETURNS  {"ok"} | {"known", id} the task of this key | {"unknown_pool"} | {"unknown_type", type…}
--          | {"unknown_agent"} | {"ended", how} | {"too_large", size, bound} | {"full", depth, bound, retry_ms}
--          | {"pool_full", depth, bound, retry_ms} | {"conflict", id} | {"unmatched", label, labels of hosts…}
--          | {"limited", code, limit, retry_ms} | {"too_deep", depth}
-- AGAIN    "ok": ids that are known are passed over

local PUSHED_BYTES = 65536
local name, type, tenant, lane = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local options = {}
for word, value in string.gmatch(ARGV[9], '([^%s=]+)=?(%S*)') do
  options[word] = value
end
local ids, fresh = {}, {}
for i = 10, #ARGV, 2 do
  ids[#ids + 1] = task_key(ARGV[i])
end
local are_known = redis.call('EXISTS', unpack(ids)) > 0
for i = 10, #ARGV, 2 do
  if not (are_known and redis.call('EXISTS', task_key(ARGV[i])) == 1) then
    fresh[#fresh + 1] = i
  end
end
if #fresh == 0 then
  return {'ok'}
end
local agent = agent_key(name)
local status, max_bytes, max_queued, max_queued_pool, queued, rate, labels, delayed, tenant_limits = unpack(redis.call(
  'HMGET', POOL, 'status', 'max_input_bytes', 'max_queued', 'max_queued_pool', 'queued', 'rate', 'labels:' .. type,
  'delayed', 'tenant_limits'))
if not status or status == 'removed' then
  return {'unknown_pool'}
end
pool_limits = {tenant_limits, max_queued}
max_bytes, max_queued, max_queued_pool = tonumber(max_bytes), tonumber(max_queued), tonumber(max_queued_pool) or 0
-- Those that may not begin yet take room too.
local nothing_waits = (tonumber(queued) or 0) == 0
queued, rate = (tonumber(queued) or 0) + (tonumber(delayed) or 0), tonumber(rate) or 0
local doing, host
if name ~= '' then
  local ending, owner
  doing, ending, owner, host = unpack(redis.call('HMGET', agent, 'status', 'ending', 'tenant', 'process_id'))
  if not doing or ending then
    local how, _, _, detail = read_ending(name)
    if not (how or ending) then
      return {'unknown_agent'}
    end
    return {'ended', how and how .. ' ' .. detail or 'it is being terminated'}
  end
  tenant = owner
elseif redis.call('HEXISTS', POOL .. ':types', type) == 0 then
  return {'unknown_type', unpack(redis.call('HKEYS', POOL .. ':types'))}
end
for _, i in ipairs(fresh) do
  local header_bytes = string.find(ARGV[i + 1], '\n', 1, true) or 0
  if header_bytes > HEADER_BYTES - 200 then
    return {'too_large', header_bytes, HEADER_BYTES - 200} -- labels of its type and `delay` may still come to it
  end
  if #ARGV[i + 1] > max_bytes + 1024 then
    return {'too_large', #ARGV[i + 1], max_bytes}
  end
end

-- -- a key that is known ---------------------------------------------------------------------------------------------

if options.key then
  local known, input = string.match(redis.call('GET', POOL .. ':key:' .. options.key) or '', '^(%S+) (%S+)$')
  if known and redis.call('EXISTS', task_key(known)) == 1 then
    return {input == options.input and 'known' or 'conflict', known}
  end
end

-- -- workers that could ever run it ----------------------------------------------------------------------------------

-- The lane of a type that needs labels itself names those too, sorted and each once.
local function merged_lane()
  local wanted, found = {}, {}
  for label in string.gmatch((string.match(lane, '%+(.*)') or '') .. '+' .. labels, '[^+]+') do
    if not found[label] then
      found[label] = true
      wanted[#wanted + 1] = label
    end
  end
  table.sort(wanted)
  return table.concat({string.match(lane, '^%a+'), unpack(wanted)}, '+')
end

local own_lane = lane
if name == '' and labels and labels ~= '' then
  lane = merged_lane()
end
local needed = string.match(lane, '%+(.*)')
if needed and unmatched(needed) then
  return {'unmatched', unmatched(needed), unpack(redis.call('HVALS', POOL .. ':labels'))}
end

-- -- bounds and limits -----------------------------------------------------------------------------------------------

-- When a queue will have room again, in ms, at the rate at which the pool has ended tasks of late.
local function retry_ms(depth, bound)
  local excess = math.max(depth + #fresh - bound, 1)
  return math.floor(math.min(math.max(rate > 0 and 1000 * excess / rate or 1000, 100), 60000))
end

local limits = limits_of(tenant)
if name ~= '' then
  local depth = redis.call('ZCARD', POOL .. ':mailbox:' .. name)
  if depth + #fresh > max_queued then
    return {'full', depth, max_queued, retry_ms(depth, max_queued)}
  end
elseif not options.parent then
  local depth = queued_of(tenant)
  if limits.queued > 0 and depth + #fresh > limits.queued then
    return {'full', depth, limits.queued, retry_ms(depth, limits.queued)}
  end
  if max_queued_pool > 0 and queued + #fresh > max_queued_pool then
    return {'pool_full', queued, max_queued_pool, retry_ms(queued, max_queued_pool)}
  end
end

-- Tell whether the tenant would hold more than `most`: its pinned agents, and its tasks that run, wait for their turn or
-- their time, or in mailboxes. At most `most` mailboxes are looked into, for the agents count themselves.
local function holds_more(waits, most)
  local count = #fresh + waits
  for _, what in ipairs({'agents', 'tasks', 'delayed'}) do
    count = count + redis.call('SCARD', tenant_key(tenant, what))
  end
  for _, agent in ipairs(count <= most and redis.call('SMEMBERS', tenant_key(tenant, 'agents')) or {}) do
    count = count + redis.call('ZCARD', POOL .. ':mailbox:' .. agent)
  end
  return count > most
end

-- Tell whether the tenant would run more than `most` at once, with what can begin before: what waits for its turn, and
-- one task for each agent that has mail and is not at work. What is delayed takes no place yet.
local function runs_more(waits, most)
  local count = #fresh + waits + running_of(tenant)
  for _, agent in ipairs(count <= most and redis.call('SRANDMEMBER', tenant_key(tenant, 'agents'), 100) or {}) do
    if redis.call('EXISTS', POOL .. ':mailbox:' .. agent) == 1
        and redis.call('HGET', agent_key(agent), 'status') ~= 'active' then
      count = count + 1
    end
  end
  return count > most
end

local function over_limit()
  local again = math.ceil(usage_of(tenant).ms)
  local waits = queued_of(tenant)
  if options.limits == 'total' and limits.agents > 0 and holds_more(waits, limits.agents) then
    return {'limited', 'TOTAL_LIMIT', limits.agents, again}
  end
  if limits.running > 0 and runs_more(waits, limits.running) then
    return {'limited', 'CONCURRENT_LIMIT', limits.running, again}
  end
  if limits.tokens_per_minute > 0 then
    local used, wait = read_window(tenant, 'tokens', limits.tokens_per_minute, 1)
    if used >= limits.tokens_per_minute then
      return {'limited', 'TOKEN_RATE_LIMIT', limits.tokens_per_minute, wait}
    end
  end
  if limits.requests_per_minute > 0 then
    local used, wait = read_window(tenant, 'requests', limits.requests_per_minute, waits + #fresh)
    if used + waits + #fresh > limits.requests_per_minute then
      return {'limited', 'REQUEST_RATE_LIMIT', limits.requests_per_minute, wait}
    end
  end
end

if options.limits then
  local refused = over_limit()
  if refused then
    return refused
  end
end

-- -- accepted --------------------------------------------------------------------------------------------------------

if options.key then
  redis.call('SET', POOL .. ':key:' .. options.key, ARGV[fresh[1]] .. ' ' .. options.input)
end
if options.parent then
  local lease, waiting = read_lease(options.parent), read_head(options.parent)
  if lease and waiting then
    for _, i in ipairs(fresh) do
      redis.call('SADD', POOL .. ':children:' .. options.parent, ARGV[i])
    end
    redis.call('SADD', held(lease.worker, 'waits'), options.parent)
    redis.call('SADD', tenant_key(waiting.tenant, 'waits'), options.parent)
    let_go(waiting.tenant)
    command(lease.worker, {type = 'wake'})
  end
end
local queue = name ~= '' and POOL .. ':mailbox:' .. name or lane_key(lane, tenant)
local rank = name ~= '' and next_rank(queue) or now_us + ARGV[8]
local ranked, records, delayed_ids, bytes = {}, {}, {}, 0
for place, i in ipairs(fresh) do
  local record = ARGV[i + 1]
  if lane ~= own_lane or tenant ~= ARGV[6] then
    record = string.gsub(record, '^(task %S+ %S+ %S+) %S+ %S+', '%1 ' .. tenant .. ' ' .. lane, 1)
  end
  if options.delay then
    -- The bounds of queues do not count it when it comes.
    record = string.gsub(record, ' (%S+)\n', function(words)
      return (words == '-' and ' ' or ' ' .. words .. ',') .. 'delay=1\n'
    end, 1)
  end
  records[#records + 1] = task_key(ARGV[i])
  records[#records + 1] = record
  bytes = bytes + #record
  if options.delay then
    delayed_ids[#delayed_ids + 1] = ARGV[i]
  else
    ranked[#ranked + 1] = rank + place - 1
    ranked[#ranked + 1] = ARGV[i]
  end
  if options.expires then
    set_timer('expire', ARGV[i], now + options.expires)
  end
  if options.batch then
    promote_later(ARGV[i], options.delay or 0)
  end
end
redis.call('MSET', unpack(records))
if options.delay then
  delay_until(now + options.delay, tenant, delayed_ids)
  return {'ok'}
end
if name ~= '' then
  redis.call('ZADD', queue, unpack(ranked))
  if doing == 'idle' then
    command(host, {type = 'wake', agent_id = pool .. '/' .. name}, true)
  end
  return {'ok'}
end
local favourite = options.sticky and redis.call('HGET', POOL .. ':affinity', options.sticky)
local workers = workers_to_wake(type .. '/' .. tenant, favourite)
local first = workers[1] and workers[1].worker
-- Where nothing else waits, and these are not much to send, a worker with room for all of them need not ask.
if first and nothing_waits and not (needed or options.parent) and bytes <= PUSHED_BYTES
    and may_be_given(first, workers[1].free, tenant, #fresh) then
  local given, texts = {}, {}
  for i = 1, #ranked, 2 do
    given[i], given[i + 1] = ranked[i + 1], string.format('%.0f', ranked[i])
    texts[#texts + 1] = records[i + 1]
  end
  give(first, tenant, given, texts)
else
  redis.call('ZADD', queue, unpack(ranked))
  redis.call('HINCRBY', POOL, 'queued', #fresh)
  if redis.call('ZCARD', queue) == #fresh then
    add_lane(lane)
    enlist(lane, tenant)
  end
  wake(workers, #fresh)
end
-- One that has gone is forgotten here; one that is only full now stays the favourite.
if options.sticky and first and first ~= favourite
    and not (favourite and redis.call('ZSCORE', POOL .. ':processes', favourite)) then
  redis.call('HSET', POOL .. ':affinity', options.sticky, first)
end
return {'ok'}
