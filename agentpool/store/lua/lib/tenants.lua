-- Tenants: their limits, their windows, their turn. Needs base.lua, workers.lua.
--
-- Start-time fair queueing. A tenant's finish tag F (in pool:{p}:tenants) is the virtual time up to which it was
-- served: it grows by the slot time of what it takes, in ms, divided by its weight. V is the largest start tag that
-- was dispatched. Whoever comes starts at max(V, F), so leaving and returning gains nothing; who waits stands in
-- pool:{p}:turns:{lane} by its tag, and the least one is next. What ran longer or shorter than estimated is corrected
-- when it ends. A tenant at a limit leaves the index for pool:{p}:held and comes back when it may go on.
--
-- The last place below a limit goes to mail of the tenant's agents and to its tasks by type in turns: neither waits for
-- all of the other. Each has it for itself for a moment only, for it may be that nobody can take it now.

local ESTIMATE_MS = 10

-- How long the last place is left to mail, or to tasks by type, at most.
local TURN_MS = 20

-- Tasks that a tenant without limits may begin now.
local MOST_AT_ONCE = 1000

-- How long what a tenant used is remembered.
local USAGE_TTL_S = 604800

local function tenant_key(tenant, what)
  return prefix .. 'tenant:' .. pool .. ':' .. tenant .. ':' .. what
end

local function lane_key(lane, tenant)
  return POOL .. ':lane:' .. lane .. ':' .. tenant
end

-- What words like `running=5` come to, of which the last of a name counts; a limit that is not named is none.
local function limits_in(words)
  local limits = recall('limits', words)
  if not limits then
    limits = memorize('limits', words, {weight = 1, agents = 0, running = 0, tokens_per_minute = 0,
      tokens_per_task = 0, requests_per_minute = 0, queued = 0})
    for name, value in string.gmatch(words, '(%S+)=(%S+)') do
      limits[name] = tonumber(value)
    end
  end
  return limits
end

local known_limits, has_limits = {}, nil

-- The limits of a tenant; 0 is none. What was set live is above the configuration, and that above the defaults.
local function limits_of(tenant)
  local limits = known_limits[tenant]
  if not limits then
    if has_limits == nil then
      has_limits = redis.call('EXISTS', POOL .. ':limits') == 1
    end
    local words = 'queued=' .. (pool_field('max_queued') or 0) .. ' '
      .. (tenant ~= 'default' and pool_field('tenant_limits') or '')
    if has_limits then
      local given = redis.call('HMGET', POOL .. ':limits', '=' .. tenant, tenant)
      words = words .. ' ' .. (given[1] or '') .. ' ' .. (given[2] or '')
    end
    limits = limits_in(words)
    known_limits[tenant] = limits
  end
  return limits
end

-- What a window of the last minute holds, and the ms until `amount` more fit below `limit`.
local function read_window(tenant, what, limit, amount)
  local second, total = math.floor(now / 1000), 0
  local fields, buckets = redis.call('HGETALL', tenant_key(tenant, what)), {}
  for i = 1, #fields, 2 do
    local at = tonumber(fields[i])
    if at > second - 60 then
      total = total + fields[i + 1]
      buckets[#buckets + 1] = {at, tonumber(fields[i + 1])}
    end
  end
  local wait = 0
  if total + amount > limit then
    table.sort(buckets, function(a, b) return a[1] < b[1] end)
    local left = total
    for _, bucket in ipairs(buckets) do
      if left + amount > limit then
        left = left - bucket[2]
        wait = (bucket[1] + 60) * 1000 - now
      end
    end
    wait = math.max(wait, 100)
  end
  return math.max(total, 0), wait
end

local function add_to_window(tenant, what, amount)
  if amount ~= 0 then
    local key, second = tenant_key(tenant, what), math.floor(now / 1000)
    redis.call('HINCRBY', key, second, amount)
    redis.call('HDEL', key, second - 60, second - 61, second - 62, second - 63)
    redis.call('EXPIRE', key, 120)
  end
end

-- Tasks of a tenant that run now, without those that wait for tasks of their own.
local function running_of(tenant)
  return redis.call('SCARD', tenant_key(tenant, 'tasks')) - redis.call('SCARD', tenant_key(tenant, 'waits'))
end

local known_usage, latest_type = {}, nil

-- What is known of a tenant's tasks: mean run time in ms and how many it is from, mean tokens or nil, and to what the
-- last place that its limits left went. `type`: whose means to read beside, else those of the type that came last.
local function usage_of(tenant, type)
  local usage = known_usage[tenant]
  if not usage then
    type = type or latest_type
    latest_type = type
    local ms, count, tokens, last_place, type_ms, type_tokens = unpack(redis.call('HMGET', tenant_key(tenant, 'usage'),
      'ms', 'count', 'tokens', 'last_place', 'ms:' .. (type or ''), 'tokens:' .. (type or '')))
    usage = {ms = tonumber(ms or pool_field('mean_ms')) or ESTIMATE_MS, count = tonumber(count) or 0,
      tokens = tonumber(tokens), last_place = last_place or '', types = {}}
    if type then
      usage.types[type] = {tonumber(type_ms), tonumber(type_tokens)}
    end
    known_usage[tenant] = usage
  end
  return usage
end

-- The means of a tenant's tasks of one type, or nil: ms in a slot, and tokens.
local function means_of(tenant, type)
  local usage = usage_of(tenant, type)
  local known = usage.types[type]
  if not known then
    local ms, tokens = unpack(redis.call('HMGET', tenant_key(tenant, 'usage'), 'ms:' .. type, 'tokens:' .. type))
    known = {tonumber(ms), tonumber(tokens)}
    usage.types[type] = known
  end
  return known[1], known[2]
end

-- Estimates of a task of this tenant and type: ms in its slot, and tokens.
local function estimate(tenant, type)
  local ms, tokens = means_of(tenant, type)
  return ms or usage_of(tenant).ms, math.ceil(tokens or 0)
end

-- Weigh in `count` new values of `mean`; each counts a tenth.
local function blend(old, mean, count)
  return old and old + (mean - old) * (1 - 0.9 ^ count) or mean
end

-- Read once in a script, and written once, by `write_turns`: each write goes to the append-only file by itself.
local present_time, known_lanes, tags, unwritten = nil, nil, {}, {}

-- No turn began in this script.
local is_empty = true

local function virtual_time()
  present_time = present_time or tonumber(pool_field('virtual_time')) or 0
  return present_time
end

local function lanes()
  known_lanes = known_lanes or redis.call('SMEMBERS', POOL .. ':lanes')
  return known_lanes
end

-- The lanes, or none when no task by type waited and none came to wait in this script.
local function lanes_in_use()
  return is_empty and (pool_field('queued') or '0') == '0' and {} or lanes()
end

local function add_lane(lane)
  for _, known in ipairs(lanes()) do
    if known == lane then
      return
    end
  end
  redis.call('SADD', POOL .. ':lanes', lane)
  known_lanes = nil
end

-- Read up to where some tenants were served, together.
local function read_tags(tenants)
  for at, tag in ipairs(#tenants > 1 and redis.call('ZMSCORE', POOL .. ':tenants', unpack(tenants)) or {}) do
    tags[tenants[at]] = tonumber(tag) or 0
  end
end

-- The virtual time up to which a tenant was served; 0 when that is past.
local function tag_of(tenant)
  tags[tenant] = tags[tenant] or tonumber(redis.call('ZSCORE', POOL .. ':tenants', tenant)) or 0
  return tags[tenant]
end

-- Whether anybody is held at a limit, and who has come to be in this script.
local somebody_held, held_now = nil, {}

-- Tell whether a tenant is held at a limit. Mostly nobody is, which saves looking for each.
local function is_held(tenant)
  if somebody_held == nil then
    somebody_held = redis.call('EXISTS', POOL .. ':held') == 1
  end
  return somebody_held and redis.call('SISMEMBER', POOL .. ':held', tenant) == 1
end

-- Give a tenant with waiting tasks its turn in a lane.
local function enlist(lane, tenant)
  is_empty = false
  if is_held(tenant) then
    return
  end
  local tag = math.max(virtual_time(), tag_of(tenant))
  redis.call('ZADD', POOL .. ':turns:' .. lane, 'NX', tag, tenant)
end

local function set_tag(tenant, tag)
  tags[tenant], unwritten[tenant] = tag, true
end

-- Tenants of which nothing waits any more, by lane.
local ended_turns = {}

-- Write whose turns are over, the finish tags that have moved, and the places of those tenants in every lane where they
-- wait.
local function write_turns()
  for lane, gone in pairs(ended_turns) do
    redis.call('ZREM', POOL .. ':turns:' .. lane, unpack(gone))
  end
  ended_turns = {}
  local moved = {}
  for tenant in pairs(unwritten) do
    moved[#moved + 1] = string.format('%.6f', tags[tenant])
    moved[#moved + 1] = tenant
  end
  unwritten = {}
  if #moved > 0 then
    redis.call('ZADD', POOL .. ':tenants', unpack(moved))
    for _, lane in ipairs(lanes_in_use()) do
      redis.call('ZADD', POOL .. ':turns:' .. lane, 'XX', unpack(moved))
    end
  end
end

-- Look again in so many ms what a tenant may begin.
local function look_again(tenant, wait_ms)
  redis.call('ZADD', POOL .. ':due', now + wait_ms, 'tenant ' .. tenant)
  tell_leader('timer')
end

-- Take a tenant out of its turns until a task of it ends, or, with `wait_ms`, until then at the latest.
local function hold(tenant, wait_ms)
  redis.call('SADD', POOL .. ':held', tenant)
  somebody_held, held_now[tenant] = true, true
  for _, lane in ipairs(lanes()) do
    redis.call('ZREM', POOL .. ':turns:' .. lane, tenant)
  end
  if wait_ms and wait_ms > 0 then
    look_again(tenant, wait_ms)
  end
end

-- Wake idle agents of a tenant whose mail waits, at most 100; true when there were any.
local function wake_mail(tenant)
  local has_woken = false
  for _, name in ipairs(redis.call('SPOP', tenant_key(tenant, 'mail'), 100)) do
    local worker, status = unpack(redis.call('HMGET', agent_key(name), 'process_id', 'status'))
    if status == 'idle' then
      command(worker, {type = 'wake', agent_id = pool .. '/' .. name}, true)
      has_woken = true
    end
  end
  return has_woken
end

-- Give a held tenant its turns back; true when it was held and has tasks that wait. `is_due`: it was not to be held for
-- longer, nor is its mail.
local function let_go(tenant, is_due)
  if redis.call('SREM', POOL .. ':held', tenant) == 0 and not is_due then
    return false
  end
  held_now[tenant] = nil
  local has_woken, waiting = wake_mail(tenant), {}
  for _, lane in ipairs(lanes()) do
    if redis.call('EXISTS', lane_key(lane, tenant)) == 1 then
      waiting[#waiting + 1] = lane
    end
  end
  if has_woken and #waiting > 0 and not is_due and usage_of(tenant).last_place == 'by type' then
    hold(tenant, TURN_MS)
    return false
  end
  for _, lane in ipairs(waiting) do
    enlist(lane, tenant)
  end
  if redis.call('EXISTS', tenant_key(tenant, 'mail')) == 1 then
    hold(tenant, 1)
  end
  return #waiting > 0
end

-- Tenants that got a turn here, or whose mail left one to tasks by type: others may have to take what they may begin.
local with_a_place = {}

local function has_turn(tenant)
  for _, lane in ipairs(lanes()) do
    if redis.call('ZSCORE', POOL .. ':turns:' .. lane, tenant) then
      return true
    end
  end
  return false
end

-- Note to what the last place of a tenant went: 'mail', 'by type', or '' when it was left to tasks by type.
local function note_last_place(tenant, what)
  local usage = usage_of(tenant)
  if usage.last_place ~= what then
    usage.last_place = what
    redis.call('HSET', tenant_key(tenant, 'usage'), 'last_place', what)
    redis.call('EXPIRE', tenant_key(tenant, 'usage'), USAGE_TTL_S)
  end
end

-- How many tasks a tenant may begin now, and when to look again in ms if that is a matter of time. `type`: as in
-- `usage_of`.
local function allowance(tenant, type)
  local limits, most, wait = limits_of(tenant), MOST_AT_ONCE, 0
  if limits.running > 0 then
    most = limits.running - running_of(tenant)
  end
  if limits.requests_per_minute > 0 then
    local used, again = read_window(tenant, 'requests', limits.requests_per_minute, 1)
    most, wait = math.min(most, limits.requests_per_minute - used), again
  end
  if limits.tokens_per_minute > 0 then
    local tokens = math.max(1, math.ceil(usage_of(tenant, type).tokens or 1))
    local used, again = read_window(tenant, 'tokens', limits.tokens_per_minute, tokens)
    local fit = math.floor((limits.tokens_per_minute - used) / tokens)
    if used == 0 then
      fit = math.max(fit, 1) -- a task that is estimated above the limit could never begin otherwise
    end
    most, wait = math.min(most, fit), math.max(wait, again)
  end
  return math.max(most, 0), wait
end
