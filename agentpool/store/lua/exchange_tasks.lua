-- A worker hands in what ended and takes new tasks: one from the mailbox of each idle agent it names, and tasks by type.
--
-- @include base workers tenants tasks agents endings claiming
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  number         of this exchange, above all earlier ones of the worker
-- ARGV[6]  room           tasks by type at most, for free slots; -1: none are wanted
-- ARGV[7]  prefetch       tasks beyond the slots at most, of tenants whose tasks are short
-- ARGV[8]  ended          how many ended, at most 100
-- ARGV[9…] ids            of each that ended, at most 100; then as many words: `agent-or-- verdict delay_ms run_ms tokens`,
--                         or the run_ms alone of a task by type that is done; as many outcomes or errors; if any ended,
--                         the lines of their audit, an empty one for what has none; names of idle pinned agents, at
--                         most 50, and ids of tasks that it has but does not know, at most 50. Verdicts: done; dead, for
--                         the dead letters; unstarted, for them without an attempt; retry after the delay; back, not
--                         counted, and with a delay because its agent could not be started
-- BUILDS   process:{w}  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs  pool:{p}:worker:{w}:cancels
--          pool:{p}:worker:{w}:waits  pool:{p}:worker:{w}:agents  pool:{p}:leases  pool:{p}:lanes
--          pool:{p}:lane:{lane}:{t}  pool:{p}:turns:{lane}  pool:{p}:mailbox:{n}  agent:{p}/{n}  task:{p}/{id}
--          tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits  tenant:{p}:{t}:usage  tenant:{p}:{t}:tokens
--          tenant:{p}:{t}:requests  tenant:{p}:{t}:mail  pool:{p}:tenants  pool:{p}:held  pool:{p}:limits
--          pool:{p}:due  pool:{p}:attempts  pool:{p}:errors:{id}  pool:{p}:dead  pool:{p}:letter:{id}
--          pool:{p}:suspects  pool:{p}:children:{id}  pool:{p}:key:{digest}  pool:{p}:followed  pool:{p}:trail:{id}
--          pool:{p}:audit  pool:{p}:events  pool:{p}:pending  pool:{p}:processes  tenant:{p}:{t}:delayed
-- RETURNS  {"ok", tenants with a turn, {ids that ended too late}, {name, tasks in its mailbox, …},
--          id, record, `attempt starts tokens_per_task` or ''…} | {"gone"}
-- AGAIN    the same number gets the same tasks, as far as they are unfinished; an older one, which comes late, none

local worker, number, count = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[8])
local names, unknown = {}, {}
for _, word in ipairs({unpack(ARGV, count > 0 and 10 + 3 * count or 9)}) do
  table.insert(string.find(word, '/', 1, true) and unknown or names, word)
end
local status, capacity, idle_since, last, batch, labels, alone, passed = unpack(redis.call('HMGET', process_key(worker),
  'status', 'capacity', 'idle_since', 'claim_number', 'claim_batch', 'labels', 'alone', 'passed'))
known_workers[worker] = {status, capacity, idle_since}
if not status or status == 'lost' then
  return {'gone'}
end
last = tonumber(last) or 0
local is_quiet = false
claimer = {worker = worker, capacity = tonumber(capacity) or 0, labels = labels or '', alone = false}
taken = new_taken()

-- Tell the worker of a task that it has, if it has.
local function tell_of(id)
  local found = read_lease(id)
  if found and found.worker == worker then
    local answer, count = taken.answer, #taken.answer
    answer[count + 1], answer[count + 2] = id, redis.call('GET', task_key(id))
    answer[count + 3] = attempt_words(id, limits_of(found.tenant).tokens_per_task)
  end
end

-- The answer to an exchange got lost: what is still as it was then is told again.
local function tell_again()
  for place, id in ipairs({unpack(ARGV, 9, 8 + count)}) do
    local words, outcome = ARGV[8 + count + place], ARGV[8 + 2 * count + place]
    local name = string.match(words, '^(%S+) ')
    if (tonumber(words) or string.find(words, ' done ', 1, true)) and not is_recorded(id, words, outcome) then
      ended.stale[#ended.stale + 1] = id
    elseif name and name ~= '-' then
      ended.agents[#ended.agents + 1] = name
    end
  end
  for id in string.gmatch(batch or '', '%S+') do
    tell_of(id)
  end
end

-- Tell whether the task that shall run alone is here yet: it may have ended by another hand than this worker's.
local function is_here(id)
  if not id or id == '' then
    return false
  end
  local found = read_lease(id)
  if found and found.worker == worker then
    return true
  end
  redis.call('HSET', process_key(worker), 'alone', '')
  return false
end

-- `agents_wait`: for slots here, which they get before tasks beyond the slots.
local function take_tasks(agents_wait)
  -- While it waits for tasks of its own it is not at work, and those, which may be suspects too, are what can begin.
  local has_alone = is_here(alone)
  local waits = has_alone and redis.call('SISMEMBER', held(worker, 'waits'), alone) == 1
  claimer.alone = has_alone and not waits and alone
  if status == 'ready' then
    local most, ahead = tonumber(ARGV[6]), agents_wait and 0 or tonumber(ARGV[7])
    local is_clear = claimer.alone or is_quiet or not claim_suspect(most >= 0)
    local is_taken = claim_mail(is_clear, passed or '', names)
    if not is_taken and is_clear and not claimer.alone and most >= 0 then
      claim_by_type(most, ahead, waits)
    end
  end
  write_leases()
  if number % 8 == 0 then -- now and then is enough
    forget_idle_tenants()
  end
  if #taken.ids > 0 then
    write_order()
  else
    write_turns()
  end
  local others, words = ended.returned, {'claim_number', number, 'claim_batch', table.concat(taken.ids, ' ')}
  if others > 0 then
    words[5], words[6] = 'ahead', 0 -- it could not begin what it had; its next beat says what it takes
  end
  rescore(worker, words)
  for _, tenant in ipairs(with_a_place) do
    others = others + (has_turn(tenant) and 1 or 0)
  end
  if others > 0 then
    wake_workers(others) -- who may have room for what this one could not begin
  end
end

if number == last then
  tell_again()
elseif number > last then
  is_quiet = look_around(worker)
  local has_pending = not is_quiet and redis.call('EXISTS', POOL .. ':pending') == 1
  if count > 0 then
    take_in(worker, 9, count)
    if has_pending then
      fill(worker, 50)
    end
  end
  take_tasks(has_pending and is_waited_for(worker))
end

for _, id in ipairs(unknown) do
  tell_of(id)
end
local waiting, mail = is_quiet and 0 or redis.call('ZCARD', POOL .. ':suspects'), {}
for _, lane in ipairs(lanes_in_use()) do
  if hosts(lane) then
    waiting = waiting + redis.call('ZCARD', POOL .. ':turns:' .. lane)
  end
end
for _, name in ipairs(ended.agents) do
  mail[#mail + 1] = name
  mail[#mail + 1] = redis.call('ZCARD', POOL .. ':mailbox:' .. name)
end
return {'ok', waiting, ended.stale, mail, unpack(taken.answer)}
