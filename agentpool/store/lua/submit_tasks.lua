-- Accept tasks for one agent or one type, all or none: their records first, then their queue, then hints to workers.
--
-- @include base workers tasks agents
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  agent          name of the pinned agent, or empty: any agent of the type
-- ARGV[5]  type           of the agent, or empty with a pinned one
-- ARGV[6]  tenant
-- ARGV[7]  later_us       added to the time by which a task by type has its turn; a mailbox is first in, first out
-- ARGV[8…] id, record     of each task in order, at most 100; records are header line and JSON, as records.py says
-- BUILDS   pool:{p}:types  agent:{p}/{n}  task:{p}/{id}  pool:{p}:mailbox:{n}  pool:{p}:lane:{type}:{t}  pool:{p}:lanes
--          pool:{p}:processes  pool:{p}:ended:{n}  process:{w}
-- RETURNS  {"ok"} | {"unknown_pool"} | {"unknown_type", type…} | {"unknown_agent"} | {"ended", how}
--          | {"too_large", size, bound} | {"full", depth, bound}
-- AGAIN    "ok": ids that are known are passed over

local name, type, tenant, later_us = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local fresh = {}
for i = 8, #ARGV, 2 do
  if redis.call('EXISTS', task_key(ARGV[i])) == 0 then
    fresh[#fresh + 1] = i
  end
end
if #fresh == 0 then
  return {'ok'}
end
if not pool_exists() then
  return {'unknown_pool'}
end
local agent = agent_key(name)
local max_bytes, max_queued = unpack(redis.call('HMGET', POOL, 'max_input_bytes', 'max_queued'))
if name ~= '' then
  local status, ending = unpack(redis.call('HMGET', agent, 'status', 'ending'))
  if not status or ending then
    local how, _, _, detail = read_ending(name)
    if not (how or ending) then
      return {'unknown_agent'}
    end
    return {'ended', how and how .. ' ' .. detail or 'it is being terminated'}
  end
elseif redis.call('HEXISTS', POOL .. ':types', type) == 0 then
  return {'unknown_type', unpack(redis.call('HKEYS', POOL .. ':types'))}
end
for _, i in ipairs(fresh) do
  if #ARGV[i + 1] > tonumber(max_bytes) + 1024 then
    return {'too_large', #ARGV[i + 1], tonumber(max_bytes)}
  end
end
local queue = name ~= '' and POOL .. ':mailbox:' .. name or POOL .. ':lane:' .. type .. ':' .. tenant
local depth = redis.call('ZCARD', queue)
if depth + #fresh > tonumber(max_queued) then
  return {'full', depth, tonumber(max_queued)}
end
local rank = name ~= '' and next_rank(queue) or now_us + later_us
for place, i in ipairs(fresh) do
  redis.call('SET', task_key(ARGV[i]), ARGV[i + 1])
  redis.call('ZADD', queue, rank + place - 1, ARGV[i])
end
if name ~= '' then
  local worker, status = unpack(redis.call('HMGET', agent, 'process_id', 'status'))
  if status == 'idle' then
    command(worker, {type = 'wake', agent_id = pool .. '/' .. name}, true)
  end
  return {'ok'}
end
redis.call('ZADD', POOL .. ':lanes', 'NX', now_us, type .. ':' .. tenant)
local without_slot = #fresh
for _, found in ipairs(workers_with_room(10)) do
  if without_slot > 0 then
    command(found.worker, {type = 'wake'})
    without_slot = without_slot - found.free
  end
end
if without_slot > 0 then
  tell_leader('room wanted')
end
return {'ok'}
