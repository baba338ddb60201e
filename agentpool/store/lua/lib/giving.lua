-- Tasks by type that are taken in: given to a worker with room, so that it need not ask, or left to wait in their lane.
-- Needs base.lua, workers.lua, tenants.lua, tasks.lua, claiming.lua and admission.lua.

-- A worker whose event loop was later than this at its last beat is given nothing that it has not asked for.
local PROMPT_MS = 100

-- What one call gives at most: more is better asked for.
local PUSHED_BYTES = 65536

-- Workers with free slots, at most ten, in the order of the pool's strategy, and when they are looked for, such as have
-- none; what this call gives to each; whom it wakes.
local roster, has_full, gifts, pushed_bytes, to_wake, is_short_of_room = nil, false, {}, 0, {}, false

-- Note what stands against tasks for a worker, and its `room`: with what it may have beyond its slots where tasks are
-- quick.
local function add_to_roster(row)
  local found = redis.call('HMGET', process_key(row.worker), 'status', 'capacity', 'idle_since', 'version', 'warm',
    'listens', 'loop_lag_ms', 'alone', 'ahead', 'agent_count', 'task_count')
  row.warm, row.listens, row.lag, row.alone = ' ' .. (found[5] or '') .. ' ', found[6], found[7], found[8]
  row.room = row.free + (tonumber(found[9]) or 0)
  if row.free == 0 then
    local slots = (tonumber(found[2]) or 0) - (tonumber(found[10]) or 0)
    row.room = row.room + math.max(slots, 0) - (tonumber(found[11]) or 0)
  end
  known_workers[row.worker] = found
  roster[#roster + 1] = row
end

local function read_roster()
  roster = {}
  for _, row in ipairs(workers_with_room(10)) do
    add_to_roster(row)
  end
end

local function read_full()
  has_full = true
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', POOL .. ':processes', 0, 0, 'LIMIT', 0, 10)) do
    add_to_roster({worker = worker, free = 0})
  end
end

-- The worker that comes first, of those with free slots: the favourite, then those with a warm agent for the group. With
-- `ahead` those with room beyond their slots come after them, that with most of it first.
local function first_worker(group, favourite, ahead)
  local warm, best, best_rank = ' ' .. group.type .. '/' .. group.tenant .. ' ', nil, nil
  for place, row in ipairs(roster) do
    if row.free > 0 or ahead and row.room > 0 then
      local rank = row.free > 0 and place or 10000 - row.room
      if row.worker == favourite then
        rank = rank - 2000
      elseif string.find(row.warm, warm, 1, true) then
        rank = rank - 1000
      end
      if not best or rank < best_rank then
        best, best_rank = row, rank
      end
    end
  end
  if not best and ahead and not has_full then
    read_full()
    return first_worker(group, favourite, ahead)
  end
  return best
end

local others_wait, agents_wait = nil, nil

-- Tell whether a suspect waits for a worker of its own, or somebody at a limit; looked up once. So is whether agents wait
-- for slots, which go before tasks beyond them.
local function somebody_waits()
  if others_wait == nil then
    local suspects, at_limits, agents = POOL .. ':suspects', POOL .. ':held', POOL .. ':pending'
    if redis.call('EXISTS', suspects, at_limits, agents, POOL .. ':attempts', POOL .. ':followed') == 0 then
      others_wait, agents_wait, tried_again, followed = false, false, false, false
    else
      others_wait, agents_wait = redis.call('EXISTS', suspects, at_limits) > 0, redis.call('EXISTS', agents) == 1
    end
  end
  return others_wait
end

-- Tell whether a worker may be given tasks that it has not asked for: it listens, it is prompt, nothing shall run alone
-- on it, and neither their tenant's limits nor its turn stand against it.
local function may_be_given(row, group, count, ahead)
  local most = ahead and math.min(row.room, turn_size(group.tenant)) or math.min(row.free, VISIT)
  return count <= most and row.listens == '1' and (tonumber(row.lag) or 0) <= PROMPT_MS and (row.alone or '') == ''
    and allowance(group.tenant, group.type) >= count
end

-- Lease tasks of a tenant, given as `lease_all` takes them, to a worker, which is told by `hand_over`.
local function give(worker, tenant, ranked, records)
  gifts[worker] = gifts[worker] or new_taken()
  taken, claimer.worker = gifts[worker], worker
  lease_all(tenant, tag_of(tenant), ranked, records)
end

-- Have as many workers woken as a group needs for so many tasks; if there are too few, the leader.
local function ask_workers(group, favourite, count)
  local row = first_worker(group, favourite)
  while row and count > 0 do
    to_wake[#to_wake + 1] = row.worker
    count, row.free = count - row.free, math.max(0, row.free - count)
    row = first_worker(group, favourite)
  end
  is_short_of_room = is_short_of_room or count > 0
end

-- Let a group of tasks by type wait, given as rank, id, …
local function queue_group(group, ranked, count)
  local lane, depths = group.lane, depths_of(group.tenant)
  local before = depths.lanes[lane] or 0
  redis.call('ZADD', lane_key(lane, group.tenant), unpack(ranked))
  if before == 0 then
    add_lane(lane)
    enlist(lane, group.tenant)
  end
  depths.all, depths.lanes[lane] = depths.all + count, before + count
  intake.queued, intake.newly_queued = intake.queued + count, intake.newly_queued + count
end

-- Give a group of tasks by type, given as rank, id, … and records, or let it wait. `may_give`: nothing waits before it.
-- Returns the worker that comes first for it.
local function give_or_queue(group, ranked, records, bytes, may_give, favourite)
  if not roster then
    read_roster()
  end
  may_give = may_give and not somebody_waits()
  local count, ahead = #records, may_give and not agents_wait and is_quick(group.tenant, group.type)
  local first = first_worker(group, favourite, ahead)
  if may_give and first and pushed_bytes + bytes <= PUSHED_BYTES and may_be_given(first, group, count, ahead) then
    local ids = {}
    for i = 1, #ranked, 2 do
      ids[i], ids[i + 1] = ranked[i + 1], string.format('%.0f', ranked[i])
    end
    give(first.worker, group.tenant, ids, records)
    first.free, first.room, pushed_bytes = math.max(0, first.free - count), first.room - count, pushed_bytes + bytes
  else
    queue_group(group, ranked, count)
    ask_workers(group, favourite, count)
  end
  return first and first.worker
end

-- Write down what was given, and tell the workers: of their tasks with a command, whose version shows if it is lost.
local function hand_over()
  local workers = {}
  if intake.newly_queued > 0 then
    redis.call('HINCRBY', POOL, 'queued', intake.newly_queued)
  end
  for worker in pairs(gifts) do
    workers[#workers + 1] = worker
  end
  table.sort(workers)
  for _, worker in ipairs(workers) do
    local version = (tonumber(known_workers[worker][4]) or 0) + 1
    taken, claimer.worker = gifts[worker], worker
    write_leases()
    rescore(worker, {'version', version})
    command(worker, {type = 'run', tasks = taken.answer, version = version})
  end
  if #workers > 0 then
    write_order()
  end
  local woken = {}
  for _, worker in ipairs(to_wake) do
    if not woken[worker] then
      woken[worker] = true
      command(worker, {type = 'wake'})
    end
  end
  if is_short_of_room then
    ask_for_room()
  end
end
