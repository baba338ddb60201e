-- Everything that a worker shall hold, in one consistent read: what it compares itself with after a gap.
--
-- @include base workers
-- @flags no-writes
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- BUILDS   process:{w}  pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs
--          pool:{p}:worker:{w}:cancels  agent:{p}/{n}  pool:{p}:mailbox:{n}
-- RETURNS  {"ok", version, status, {tasks to cancel…}, {tasks by type that it has…}, {tasks from mailboxes that it has…},
--          {name, type, incarnation, tenant, project, max_idle_ms,
--          heartbeat_ms, status, tasks in its mailbox}…} | {"gone"}
-- AGAIN    reads only

local worker = ARGV[4]
local status, version = unpack(redis.call('HMGET', process_key(worker), 'status', 'version'))
if not status or status == 'lost' then
  return {'gone'}
end
local tasks = redis.call('ZRANGEBYSCORE', held(worker, 'tasks'), '-inf', '+inf', 'LIMIT', 0, 1000)
local runs = redis.call('ZRANGEBYSCORE', held(worker, 'runs'), '-inf', '+inf', 'LIMIT', 0, 1000)
local answer = {'ok', tonumber(version), status, redis.call('SMEMBERS', held(worker, 'cancels')), tasks, runs}
for _, name in ipairs(redis.call('SMEMBERS', held(worker, 'agents'))) do
  local fields = redis.call('HMGET', agent_key(name), 'agent_type', 'incarnation', 'tenant',
    'project', 'max_idle_ms', 'heartbeat_ms', 'status')
  answer[#answer + 1] = {name, unpack(fields)}
  table.insert(answer[#answer], redis.call('ZCARD', POOL .. ':mailbox:' .. name))
end
return answer
