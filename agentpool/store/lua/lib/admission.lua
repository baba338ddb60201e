-- What stands against tasks that are handed in. Needs base.lua, workers.lua, tenants.lua, tasks.lua and agents.lua.
--
-- Tasks come in groups that share everything but their records. A group is {name, type, tenant, lane, later_us, options,
-- ids, records}, of tasks that are not known yet; what is found out about its agent or its lane is added to it.

local intake = nil

-- The pool as all groups of one call find it; what is taken in is counted in it. `newly_queued` is written down once.
local function read_intake()
  local status = pool_field('status')
  intake = {exists = status and status ~= 'removed', types = {}, depths = {}, newly_queued = 0,
    queued = pool_number('queued'), delayed = pool_number('delayed'), max_input_bytes = pool_number('max_input_bytes'),
    bound = pool_number('max_queued_pool')}
end

-- How many tasks by type of a tenant wait: `all`, and by lane. Looked up once, and then kept as tasks are taken in.
local function depths_of(tenant)
  local depths = intake.depths[tenant]
  if not depths then
    depths = {all = 0, lanes = {}}
    intake.depths[tenant] = depths
    for _, lane in ipairs(lanes_in_use()) do
      depths.lanes[lane] = redis.call('ZCARD', lane_key(lane, tenant))
      depths.all = depths.all + depths.lanes[lane]
    end
  end
  return depths
end

-- The labels that a type of the pool needs, joined by `+`; nil for a type that it does not have.
local function labels_of_type(type)
  local known = intake.types[type]
  if known == nil then
    known = redis.call('HEXISTS', POOL .. ':types', type) == 1 and (redis.call('HGET', POOL, 'labels:' .. type) or '')
    intake.types[type] = known
  end
  return known or nil
end

-- The lane of a type that needs labels itself names those too, sorted and each once.
local function merged_lane(lane, labels)
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

-- Whom the tasks are for: the group gets its agent's state, worker and tenant, or its lane with the labels of its type.
local function find_target(group)
  if group.name == '' then
    local labels = labels_of_type(group.type)
    if not labels then
      return {'unknown_type', unpack(redis.call('HKEYS', POOL .. ':types'))}
    end
    group.lane = labels ~= '' and merged_lane(group.lane, labels) or group.lane
    return nil
  end
  local doing, ending, tenant, host =
    unpack(redis.call('HMGET', agent_key(group.name), 'status', 'ending', 'tenant', 'process_id'))
  if not doing or ending then
    local how, _, _, detail = read_ending(group.name)
    if not (how or ending) then
      return {'unknown_agent'}
    end
    return {'ended', how and how .. ' ' .. detail or 'it is being terminated'}
  end
  group.doing, group.host, group.tenant = doing, host, tenant
end

local function measure_records(group)
  for _, record in ipairs(group.records) do
    local header_bytes = string.find(record, '\n', 1, true) or 0
    if header_bytes > HEADER_BYTES - 200 then
      return {'too_large', header_bytes, HEADER_BYTES - 200} -- labels of its type and `delay` may still come to it
    end
    if #record > intake.max_input_bytes + 1024 then
      return {'too_large', #record, intake.max_input_bytes}
    end
  end
end

-- The answer for a key that a task has already. Whoever gets that as theirs shares it from now on.
local function find_key(group)
  local options, known, input = group.options, read_key(group.options.key)
  if not known or redis.call('EXISTS', task_key(known)) == 0 then
    return nil
  elseif input ~= options.input then
    return {'conflict', known}
  elseif known ~= group.ids[1] then
    redis.call('SET', POOL .. ':key:' .. options.key, known .. ' ' .. input .. ' shared', 'KEEPTTL')
  end
  return {'known', known}
end

-- When a queue will have room again, in ms, at the rate at which the pool has ended tasks of late.
local function retry_ms(excess)
  local rate = pool_number('rate')
  return math.floor(math.min(math.max(rate > 0 and 1000 * math.max(excess, 1) / rate or 1000, 100), 60000))
end

local function over_bounds(group, count)
  if group.name ~= '' then
    local depth, bound = redis.call('ZCARD', POOL .. ':mailbox:' .. group.name), pool_number('max_queued')
    return depth + count > bound and {'full', depth, bound, retry_ms(depth + count - bound)} or nil
  elseif group.options.parent then
    return nil
  end
  local bound = limits_of(group.tenant).queued
  local depth = bound > 0 and depths_of(group.tenant).all or 0
  if bound > 0 and depth + count > bound then
    return {'full', depth, bound, retry_ms(depth + count - bound)}
  end
  depth, bound = intake.queued + intake.delayed, intake.bound -- those that may not begin yet take room too
  if bound > 0 and depth + count > bound then
    return {'pool_full', depth, bound, retry_ms(depth + count - bound)}
  end
end

-- Tell whether the tenant would hold more than `most` with `count` more: its pinned agents, and its tasks that run, wait
-- for their turn or their time, or in mailboxes. At most `most` mailboxes are looked into, for the agents count
-- themselves.
local function holds_more(tenant, count, most)
  for _, what in ipairs({'agents', 'tasks', 'delayed'}) do
    count = count + redis.call('SCARD', tenant_key(tenant, what))
  end
  for _, agent in ipairs(count <= most and redis.call('SMEMBERS', tenant_key(tenant, 'agents')) or {}) do
    count = count + redis.call('ZCARD', POOL .. ':mailbox:' .. agent)
  end
  return count > most
end

-- Tell whether the tenant would run more than `most` at once, with `count` that can begin before: what waits for its
-- turn, and one task for each agent that has mail and is not at work. What is delayed takes no place yet.
local function runs_more(tenant, count, most)
  count = count + running_of(tenant)
  for _, agent in ipairs(count <= most and redis.call('SRANDMEMBER', tenant_key(tenant, 'agents'), 100) or {}) do
    if redis.call('EXISTS', POOL .. ':mailbox:' .. agent) == 1
        and redis.call('HGET', agent_key(agent), 'status') ~= 'active' then
      count = count + 1
    end
  end
  return count > most
end

local function over_limits(group, count)
  local tenant, limits = group.tenant, limits_of(group.tenant)
  local again = math.ceil(usage_of(tenant).ms)
  local waits = depths_of(tenant).all
  if group.options.limits == 'total' and limits.agents > 0 and holds_more(tenant, count + waits, limits.agents) then
    return {'limited', 'TOTAL_LIMIT', limits.agents, again}
  end
  if limits.running > 0 and runs_more(tenant, count + waits, limits.running) then
    return {'limited', 'CONCURRENT_LIMIT', limits.running, again}
  end
  if limits.tokens_per_minute > 0 then
    local used, wait = read_window(tenant, 'tokens', limits.tokens_per_minute, 1)
    if used >= limits.tokens_per_minute then
      return {'limited', 'TOKEN_RATE_LIMIT', limits.tokens_per_minute, wait}
    end
  end
  if limits.requests_per_minute > 0 then
    local used, wait = read_window(tenant, 'requests', limits.requests_per_minute, waits + count)
    if used + waits + count > limits.requests_per_minute then
      return {'limited', 'REQUEST_RATE_LIMIT', limits.requests_per_minute, wait}
    end
  end
end

-- Why a group is not taken in, as it is answered; nil when it is.
local function refusal_of(group)
  if not intake.exists then
    return {'unknown_pool'}
  end
  local refused = find_target(group) or measure_records(group) or (group.options.key and find_key(group))
  if refused then
    return refused
  end
  local labels = string.match(group.lane, '%+(.*)')
  if labels and unmatched(labels) then
    return {'unmatched', unmatched(labels), unpack(redis.call('HVALS', POOL .. ':labels'))}
  end
  return over_bounds(group, #group.ids) or (group.options.limits and over_limits(group, #group.ids)) or nil
end
