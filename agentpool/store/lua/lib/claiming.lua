-- What a worker takes: from the mailboxes of its idle agents, and by type in the turns of tenants.
-- Needs base.lua, workers.lua, tenants.lua and tasks.lua.

-- Tasks that a tenant of weight 1 gets at most when it has its turn; or of very short ones, as many as take so many ms:
-- each turn costs the server as much as ten tasks.
local VISIT = 16
local VISIT_MS = 5

-- Who takes: the worker, the slots and labels that it has, the task that shall run `alone` on it or false.
local claimer = {worker = '', capacity = 0, labels = '', alone = false}

-- What a worker has taken, as it is told and as it is written, once for all; `terms` by header line. `now` as text.
local function new_taken()
  return {ids = {}, answer = {}, tasks = {}, runs = {}, leases = {}, dequeued = 0, terms = {},
    now = string.format('%.0f', now)}
end

-- What is taken now; to be set first.
local taken = nil

-- What the worker is told of a task beside its record; '' of most, of which there is nothing to tell.
local function attempt_words(id, tokens_per_task)
  if tokens_per_task == 0 and not has_attempts() then
    return ''
  end
  local tried = read_attempts(id)
  return (tried.attempts + 1) .. ' ' .. tried.starts .. ' ' .. tokens_per_task
end

-- What the leases of all tasks with this header line say, and what such a task is charged in advance; nil for a line
-- that is none.
local function make_terms(line, charge)
  local head = head_in(line)
  local tenant = head.tenant
  if not tenant then
    return nil
  end
  local terms = {tenant = tenant, ms = 0, tokens = 0, tokens_per_task = limits_of(tenant).tokens_per_task}
  if charge then
    terms.ms, terms.tokens = estimate(tenant, head.type)
  end
  terms.words = string.format('%s %.3f %.0f ', claimer.worker, terms.ms, terms.tokens) .. line .. ' '
  return terms
end

local function terms_of(line)
  local terms = taken.terms[line]
  if not terms then
    terms = make_terms(line, true)
    taken.terms[line] = terms
  end
  return terms
end

local function header_line(record)
  local line_ends = record and string.find(record, '\n', 1, true)
  return line_ends and string.sub(record, 1, line_ends - 1)
end

-- Note the lease of a task; `set` is where the worker has it: tasks, or runs of pinned agents.
local function lease(set, id, rank, record, terms)
  local scores, leases, answer, place = taken[set], taken.leases, taken.answer, #taken.ids
  local count = #scores
  taken.ids[place + 1] = id
  scores[count + 1], scores[count + 2] = taken.now, id
  leases[2 * place + 1], leases[2 * place + 2] = id, terms.words .. rank
  answer[3 * place + 1], answer[3 * place + 2] = id, record
  answer[3 * place + 3] = attempt_words(id, terms.tokens_per_task)
  if has_followers() then
    tell_followers(id, 'task.started', claimer.worker)
  end
end

local function write_leases()
  local worker = claimer.worker
  for _, set in ipairs({'tasks', 'runs'}) do
    if #taken[set] > 0 then
      redis.call('ZADD', held(worker, set), unpack(taken[set]))
    end
  end
  if #taken.leases > 0 then
    redis.call('HSET', POOL .. ':leases', unpack(taken.leases))
  end
  if taken.dequeued > 0 then
    redis.call('HINCRBY', POOL, 'queued', -taken.dequeued)
  end
end

-- What a tenant has used no more of, so that its turn begins at the present virtual time anyway, is forgotten.
local function forget_idle_tenants()
  local past = redis.call('ZRANGEBYSCORE', POOL .. ':tenants', '-inf',
    '(' .. string.format('%.6f', virtual_time()), 'LIMIT', 0, 100)
  if #past > 0 then
    redis.call('ZREM', POOL .. ':tenants', unpack(past))
  end
end

-- Write down up to where tenants were served.
local function write_order()
  write_turns()
  redis.call('HSET', POOL, 'virtual_time', string.format('%.6f', virtual_time()))
end

-- Nothing is charged in advance: what it took counts when it ends.
local function lease_one(set, id, rank, record)
  local terms = make_terms(header_line(record), false)
  lease(set, id, rank, record, terms)
  redis.call('SADD', tenant_key(terms.tenant, 'tasks'), id)
  if limits_of(terms.tenant).requests_per_minute > 0 then
    add_to_window(terms.tenant, 'requests', 1)
  end
end

local function is_suspect(id)
  return read_attempts(id).suspect == 1
end

-- Whether anything is at work here; what waits for tasks of its own is not, and those may be what wants to run alone.
local function is_busy()
  local worker = claimer.worker
  local tasks = redis.call('ZCARD', held(worker, 'tasks')) + redis.call('ZCARD', held(worker, 'runs'))
  return tasks > redis.call('SCARD', held(worker, 'waits'))
end

local function run_alone(id)
  claimer.alone = id
  redis.call('HSET', process_key(claimer.worker), 'alone', id)
end

-- True when what it holds has to wait until nothing else runs here.
local function claim_mailbox(name)
  local agent = agent_key(name)
  local owner, state, tenant = unpack(redis.call('HMGET', agent, 'process_id', 'status', 'tenant'))
  if owner ~= claimer.worker or state ~= 'idle' then
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
  elseif allowed == 1 and usage_of(tenant).last_place == 'mail' and has_turn(tenant) then
    redis.call('SADD', tenant_key(tenant, 'mail'), name)
    note_last_place(tenant, '')
    look_again(tenant, TURN_MS)
    with_a_place[#with_a_place + 1] = tenant
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
    lease_one('runs', id, rank, record)
    redis.call('HSET', agent, 'status', 'active', 'task_id', id)
    if allowed == 1 then
      note_last_place(tenant, 'mail')
    elseif allowed < MOST_AT_ONCE and let_go(tenant) then
      with_a_place[#with_a_place + 1] = tenant
    end
  end
end

local function hosts(lane)
  for label in string.gmatch(string.match(lane, '%+(.*)') or '', '[^+]+') do
    if not string.find(' ' .. claimer.labels .. ' ', ' ' .. label .. ' ', 1, true) then
      return false
    end
  end
  return true
end

-- The suspect that has waited longest, of those that may run here.
local function next_suspect()
  if redis.call('SCARD', held(claimer.worker, 'agents')) >= claimer.capacity then
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
local function claim_suspect(takes_types)
  local worker = claimer.worker
  if redis.call('EXISTS', POOL .. ':suspects') == 0 then
    return false
  end
  local id, clearing = next_suspect(), redis.call('HGET', POOL, 'clearing')
  if not (id and takes_types) then
    if clearing == worker and not id then
      redis.call('HDEL', POOL, 'clearing')
    end
    return id and clearing == worker
  elseif not is_busy() then
    redis.call('ZREM', POOL .. ':suspects', id)
    redis.call('HDEL', POOL, 'clearing')
    run_alone(id)
    lease_one('tasks', id, string.format('%.0f', now_us), redis.call('GET', task_key(id)))
    return true
  elseif not clearing or clearing == worker or not redis.call('ZSCORE', POOL .. ':processes', clearing) then
    redis.call('HSET', POOL, 'clearing', worker)
    return true
  end
  return false
end

-- Take from the mailboxes of these idle agents. Those that are passed over, because what runs here shall be alone, are
-- looked at again by the next exchange, whether it names them or not; `passed` are those of the last one.
-- True when nothing else may begin here.
local function claim_mail(is_clear, passed, named)
  if passed == '' and #named == 0 then
    return false
  end
  local names, left, first = {}, {}, nil
  for name in string.gmatch(passed, '%S+') do
    names[#names + 1] = name
  end
  for _, name in ipairs(named) do
    names[#names + 1] = name
  end
  for _, name in ipairs(names) do
    if not is_clear or claimer.alone or first then
      left[#left + 1] = name
    elseif claim_mailbox(name) then
      first = name
    end
  end
  local words = table.concat({first or '', unpack(left)}, ' ')
  if words ~= passed then
    redis.call('HSET', process_key(claimer.worker), 'passed', words)
  end
  return first ~= nil
end

-- The lanes of each level that the worker hosts; and of each lane the turns that are not over yet: {tenant, tag, lane},
-- … by tag.
local levels, turns = nil, nil

-- Turns of a lane that are read at once.
local TURNS = 20

local function read_turns(lane)
  local rows, found = redis.call('ZRANGE', POOL .. ':turns:' .. lane, 0, TURNS - 1, 'WITHSCORES'), {}
  for i = 1, #rows, 2 do
    found[#found + 1] = {tenant = rows[i], tag = tonumber(rows[i + 1]), lane = lane}
  end
  found.has_more = #found == TURNS
  turns[lane] = found
  return found
end

-- A tenant was served since its turn was read, here or in another lane: it comes again later, maybe behind those that
-- were read.
local function move_back(found, turn)
  table.remove(found, 1)
  turn.tag = tags[turn.tenant]
  unwritten[turn.tenant] = true
  local place = 1
  while found[place] and found[place].tag <= turn.tag do
    place = place + 1
  end
  if found[place] or not found.has_more then
    table.insert(found, place, turn)
  end
end

-- Whose turn it is in a lane; nil when nobody's.
local function first_of(lane)
  local found = turns[lane] or read_turns(lane)
  while true do
    local turn = found[1]
    if not turn and found.has_more then
      write_turns()
      found = read_turns(lane)
    elseif not turn then
      return nil
    elseif held_now[turn.tenant] then
      table.remove(found, 1)
    elseif tags[turn.tenant] and tags[turn.tenant] >= turn.tag + 0.001 then
      move_back(found, turn)
    else
      return turn
    end
  end
end

-- Whose turn it is in the lanes of a level.
local function next_turn(level)
  local best
  for _, lane in ipairs(levels[level]) do
    local turn = first_of(lane)
    if turn and (not best or turn.tag < best.tag) then
      best = turn
    end
  end
  return best
end

-- Nothing of a tenant waits in a lane any more.
local function end_turn(turn)
  table.remove(turns[turn.lane], 1)
  local gone = ended_turns[turn.lane] or {}
  gone[#gone + 1] = turn.tenant
  ended_turns[turn.lane] = gone
end

-- Lease tasks of a tenant whose turn has come, given as id, rank, … and their records, and charge it for them; `tag` is
-- up to where it was served. Returns how many there were: what has no record, or an outcome, is passed over.
local function lease_all(tenant, tag, ranked, records)
  local limits, ids, charge, reserved = limits_of(tenant), {}, 0, 0
  for place, record in ipairs(records) do
    local line = header_line(record)
    local terms = line and terms_of(line)
    if terms then
      ids[#ids + 1] = ranked[2 * place - 1]
      lease('tasks', ranked[2 * place - 1], ranked[2 * place], record, terms)
      charge, reserved = charge + terms.ms, reserved + terms.tokens
    end
  end
  local start = math.max(virtual_time(), tag)
  present_time = start
  set_tag(tenant, start + charge / limits.weight)
  if #ids > 0 then
    redis.call('SADD', tenant_key(tenant, 'tasks'), unpack(ids))
    add_to_window(tenant, 'tokens', reserved)
    if limits.requests_per_minute > 0 then
      add_to_window(tenant, 'requests', #ids)
    end
  end
  return #ids
end

-- Tell whether a tenant's tasks take so little time that a worker may have more of them than it has slots. `type`: as in
-- `usage_of`.
local function is_quick(tenant, type)
  local usage = usage_of(tenant, type)
  return usage.count >= 8 and usage.ms < 5
end

-- How many tasks a tenant gets at most in one turn. Those whose tasks take long are served one by one, so that nobody is
-- far ahead for as long as they take.
local function turn_size(tenant)
  local weight = limits_of(tenant).weight
  local a_ms = weight / math.max(usage_of(tenant).ms, 0.001)
  local quantum = math.max(1, math.floor(50 * a_ms))
  return math.min(math.ceil(math.max(VISIT * weight, VISIT_MS * a_ms)), quantum)
end

-- Serve the tenant whose turn it is, at most `most` tasks; returns how many, or nil when it could not be served.
local function visit(turn, most)
  local tenant, queue = turn.tenant, lane_key(turn.lane, turn.tenant)
  local allowed, wait = allowance(tenant)
  if allowed == 0 then
    hold(tenant, wait)
    return nil
  end
  local count = math.min(most, allowed, turn_size(tenant))
  local popped, keys = redis.call('ZPOPMIN', queue, count), {'MGET'}
  for i = 1, #popped, 2 do
    keys[#keys + 1] = task_key(popped[i])
  end
  taken.dequeued = taken.dequeued + #popped / 2
  local got = lease_all(tenant, tags[tenant] or turn.tag, popped, #keys > 1 and redis.call(unpack(keys)) or {})
  if #popped / 2 < count or redis.call('EXISTS', queue) == 0 then
    end_turn(turn)
  end
  if got >= allowed then
    note_last_place(tenant, 'by type')
    if redis.call('EXISTS', tenant_key(tenant, 'mail')) == 1 then
      local _, again = allowance(tenant)
      hold(tenant, again)
    end
  end
  return got
end

-- Serve one level until `most` are taken; `quick`: only tenants whose tasks are.
local function serve(level, most, quick)
  local got = 0
  for _ = 1, 2 * most + 20 do
    local turn = got < most and next_turn(level)
    if not turn or quick and not is_quick(turn.tenant) then
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

-- Take tasks by type: at most `most` for free slots, and `ahead` beyond those; or only such as other tasks wait for.
local function claim_by_type(most, ahead, only_children)
  local worker = claimer.worker
  levels, turns = {child = {}, urgent = {}, normal = {}, batch = {}}, {}
  for _, lane in ipairs(lanes()) do
    if hosts(lane) then
      table.insert(levels[string.match(lane, '^%a+')], lane)
    end
  end
  local tasks = redis.call('ZCARD', held(worker, 'tasks'))
  local free = claimer.capacity - redis.call('SCARD', held(worker, 'agents')) - tasks
  -- Each task that waits for tasks of its own lends its slot to such tasks.
  local got = serve('child', math.min(100, math.max(0, free + redis.call('SCARD', held(worker, 'waits')))))
  if only_children then
    return
  end
  local room = math.min(most, free, 100) - got
  if room > 0 then
    local count = serve_urgent_and_normal(room)
    if count < room then
      count = count + serve('batch', room - count)
    end
    got, room = got + count, room - count
  end
  local more = math.min(ahead, 100 - got)
  if room <= 0 and more > 0 then
    serve_urgent_and_normal(more, true)
  end
end
