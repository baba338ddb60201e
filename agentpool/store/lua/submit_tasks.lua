-- Accept tasks in groups, each for one agent or one type, all of a group or none: their records first, then their place.
--
-- @include base workers tenants tasks agents claiming admission giving
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] groups         at most 100 tasks in at most 16 groups, one after the other. Of each group these words:
--          agent          name of the pinned agent, or empty: any agent of the type
--          type           of the agent, or empty with a pinned one
--          tenant         of a task by type; for one agent, its own counts
--          lane           urgent, normal, batch or child, and after `+` each label that a worker must have
--          later_us       added to the time by which a task by type has its turn; a mailbox is first in, first out
--          options        `name=value` words: delay, expires in ms; key and input, digests, with one task; parent, the
--                         task that waits for these; sticky, whose worker is to be preferred; limits: `reject`, or
--                         `total` for all that it holds. And `batch` alone: after the pool's `batch_max_wait` they
--                         wait like others
--          count          of its tasks, then id and record of each in order: header line and JSON (protocol/tasks.py)
-- BUILDS   pool:{p}:types  agent:{p}/{n}  task:{p}/{id}  pool:{p}:mailbox:{n}  pool:{p}:lane:{lane}:{t}
--          pool:{p}:lanes  pool:{p}:turns:{lane}  pool:{p}:processes  pool:{p}:ended:{n}  process:{w}  pool:{p}:due
--          pool:{p}:key:{digest}  pool:{p}:children:{id}  pool:{p}:labels  pool:{p}:limits  pool:{p}:tenants
--          pool:{p}:held  pool:{p}:affinity  pool:{p}:leases  tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits
--          tenant:{p}:{t}:tokens  tenant:{p}:{t}:requests  tenant:{p}:{t}:usage  pool:{p}:worker:{w}:waits
--          tenant:{p}:{t}:mail  pool:{p}:suspects  pool:{p}:attempts  pool:{p}:followed  pool:{p}:trail:{id}
--          pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs  tenant:{p}:{t}:delayed
--          tenant:{p}:{t}:agents  pool:{p}:pending
-- RETURNS  of each group {"ok"} | {"known", id} the task of this key | {"unknown_pool"} | {"unknown_type", type…}
--          | {"unknown_agent"} | {"ended", how} | {"too_large", size, bound} | {"full", depth, bound, retry_ms}
--          | {"pool_full", depth, bound, retry_ms} | {"conflict", id} | {"unmatched", label, labels of hosts…}
--          | {"limited", code, limit, retry_ms}
-- AGAIN    "ok": ids that are known are passed over, as is one that a group names twice

local NO_OPTIONS = {}

local function options_in(words)
  local options = words == '' and NO_OPTIONS or {}
  for word, value in string.gmatch(words, '([^%s=]+)=?(%S*)') do
    options[word] = value
  end
  return options
end

-- Ids and records of so many tasks from a place on, without those that are named twice.
local function read_tasks(place, count)
  local ids, records = {ARGV[place]}, {ARGV[place + 1]}
  if count > 1 then
    local named, kept = {[ids[1]] = true}, 1
    for at = place + 2, place + 2 * count - 1, 2 do
      local id = ARGV[at]
      if not named[id] then
        named[id], kept = true, kept + 1
        ids[kept], records[kept] = id, ARGV[at + 1]
      end
    end
  end
  return ids, records
end

local function read_groups()
  local groups = {}
  local place = 4
  while place < #ARGV do
    local name, type, tenant, lane, later_us, words, count = unpack(ARGV, place, place + 6)
    local ids, records = read_tasks(place + 7, tonumber(count))
    groups[#groups + 1] = {name = name, type = type, tenant = tenant, lane = lane, later_us = later_us,
      options = options_in(words), tenant_given = tenant, lane_given = lane, ids = ids, records = records}
    place = place + 7 + 2 * count
  end
  return groups
end

-- Leave out what is known already; true when something was.
local function pass_over(group)
  local ids, records = group.ids, group.records
  group.ids, group.records = {}, {}
  for at, id in ipairs(ids) do
    if redis.call('EXISTS', task_key(id)) == 0 then
      group.ids[#group.ids + 1], group.records[#group.records + 1] = id, records[at]
    end
  end
  return #group.ids < #ids
end

-- The task that waits for these gives back its permit, and its worker learns that it lends its slot.
local function note_parent(group)
  local parent = group.options.parent
  local lease, waiting = read_lease(parent), read_head(parent)
  if lease and waiting then
    redis.call('SADD', POOL .. ':children:' .. parent, unpack(group.ids))
    redis.call('SADD', held(lease.worker, 'waits'), parent)
    redis.call('SADD', tenant_key(waiting.tenant, 'waits'), parent)
    let_go(waiting.tenant)
    command(lease.worker, {type = 'wake'})
  end
end

-- Tell whether records are kept in another form than that in which they came.
local function is_to_complete(group)
  return group.options.delay or group.lane ~= group.lane_given or group.tenant ~= group.tenant_given
end

-- The record as it is kept: with its agent's tenant or the labels of its type, and with a word that the bounds of queues
-- do not count it when it comes late.
local function complete(record, group)
  if group.lane ~= group.lane_given or group.tenant ~= group.tenant_given then
    record = string.gsub(record, '^(task %S+ %S+ %S+) %S+ %S+', '%1 ' .. group.tenant .. ' ' .. group.lane, 1)
  end
  if group.options.delay then
    record = string.gsub(record, ' (%S+)\n', function(words)
      return (words == '-' and ' ' or ' ' .. words .. ',') .. 'delay=1\n'
    end, 1)
  end
  return record
end

-- Write the records of a group, unless one is known, which is false then; else returns their size.
local function keep(group)
  local written, bytes, records = {}, 0, group.records
  if not group.is_complete and is_to_complete(group) then
    for at, record in ipairs(records) do
      records[at] = complete(record, group)
    end
  end
  group.is_complete = true
  for at, id in ipairs(group.ids) do
    local record = records[at]
    bytes = bytes + #record
    written[2 * at - 1], written[2 * at] = task_key(id), record
  end
  return redis.call('MSETNX', unpack(written)) == 1 and bytes
end

local function set_timers(group)
  local options = group.options
  for _, id in ipairs((options.expires or options.batch) and group.ids or {}) do
    if options.expires then
      set_timer('expire', id, now + options.expires)
    end
    if options.batch then
      promote_later(id, options.delay or 0)
    end
  end
end

local function ranked_from(rank, ids)
  local ranked = {}
  for at, id in ipairs(ids) do
    ranked[2 * at - 1], ranked[2 * at] = rank + at - 1, id
  end
  return ranked
end

local function put_into_mailbox(group)
  local mailbox = POOL .. ':mailbox:' .. group.name
  redis.call('ZADD', mailbox, unpack(ranked_from(next_rank(mailbox), group.ids)))
  if group.doing == 'idle' then
    command(group.host, {type = 'wake', agent_id = pool .. '/' .. group.name}, true)
  end
end

-- Where nothing else waits, what comes is given to a worker with room.
local function hand_in(group, bytes)
  local options, needs_labels = group.options, string.find(group.lane, '+', 1, true)
  local favourite = options.sticky and redis.call('HGET', POOL .. ':affinity', options.sticky)
  local may_give = intake.queued == 0 and not (needs_labels or options.parent)
  local ranked = ranked_from(now_us + group.later_us, group.ids)
  local first = give_or_queue(group, ranked, group.records, bytes, may_give, favourite)
  -- One that has gone is forgotten here; one that is only full now stays the favourite.
  if options.sticky and first and first ~= favourite
      and not (favourite and redis.call('ZSCORE', POOL .. ':processes', favourite)) then
    redis.call('HSET', POOL .. ':affinity', options.sticky, first)
  end
end

local function place_tasks(group, bytes)
  local options = group.options
  if options.key then
    redis.call('SET', POOL .. ':key:' .. options.key, group.ids[1] .. ' ' .. options.input)
  end
  if options.parent then
    note_parent(group)
  end
  set_timers(group)
  if options.delay then
    delay_until(now + options.delay, group.tenant, group.ids)
    intake.delayed = intake.delayed + #group.ids
  elseif group.name ~= '' then
    put_into_mailbox(group)
  else
    hand_in(group, bytes)
  end
end

-- What was known already is not counted against the bounds, nor taken in again: it is seldom, so it is looked for where
-- it would matter.
local function accept(group)
  local refused = refusal_of(group)
  local bytes = not refused and keep(group)
  if not bytes and pass_over(group) then
    if #group.ids == 0 then
      return {'ok'}
    end
    refused = refusal_of(group)
    bytes = not refused and keep(group)
  end
  if refused then
    return refused
  end
  place_tasks(group, bytes)
  return {'ok'}
end

read_intake()
local groups, answers, tenants = read_groups(), {}, {}
for _, group in ipairs(groups) do
  tenants[#tenants + 1] = group.tenant
end
read_tags(tenants)
for at, group in ipairs(groups) do
  answers[at] = accept(group)
end
hand_over()
return answers
