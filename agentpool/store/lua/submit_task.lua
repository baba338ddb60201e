-- Accept a task: its record first, then its queue, then a hint to a worker.
--
-- @include base workers tasks agents
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  task           id
-- ARGV[5]  record         header line and JSON, as records.py says
-- ARGV[6]  agent          name of the pinned agent, or empty: any agent of the type
-- ARGV[7]  type           of the agent, or empty with a pinned one
-- ARGV[8]  tenant
-- ARGV[9]  later_us       added to the time by which a task by type has its turn; a mailbox is first in, first out
-- BUILDS   pool:{p}:types  agent:{p}/{n}  task:{p}/{id}  pool:{p}:mailbox:{n}  pool:{p}:lane:{type}:{t}  pool:{p}:lanes
--          pool:{p}:processes  pool:{p}:ended:{n}  process:{w}
-- RETURNS  {"ok"} | {"unknown_pool"} | {"unknown_type", type…} | {"unknown_agent"} | {"ended", how}
--          | {"too_large", size, bound} | {"full", depth, bound}
-- AGAIN    "ok": the id is known, nothing is added

local id, record, name, type, tenant = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
if redis.call('EXISTS', task_key(id)) == 1 then
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
if #record > tonumber(max_bytes) + 1024 then
  return {'too_large', #record, tonumber(max_bytes)}
end
local queue = name ~= '' and POOL .. ':mailbox:' .. name or POOL .. ':lane:' .. type .. ':' .. tenant
local depth = redis.call('ZCARD', queue)
if depth >= tonumber(max_queued) then
  return {'full', depth, tonumber(max_queued)}
end
redis.call('SET', task_key(id), record)
redis.call('ZADD', queue, name ~= '' and next_rank(queue) or now_us + ARGV[9], id)
if name ~= '' then
  local worker, status = unpack(redis.call('HMGET', agent, 'process_id', 'status'))
  if status == 'idle' then
    command(worker, {type = 'wake', agent_id = pool .. '/' .. name}, true)
  end
  return {'ok'}
end
redis.call('ZADD', POOL .. ':lanes', 'NX', now_us, type .. ':' .. tenant)
local worker = pick_worker()
if worker then
  command(worker, {type = 'wake'})
else
  tell_leader('room wanted')
end
return {'ok'}
