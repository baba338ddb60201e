-- Submit a dead letter anew, as another task that names the old one; the letter is gone then.
--
-- @include base workers tenants tasks
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  task           id of the dead one
-- ARGV[5]  again          id of the new one
-- BUILDS   pool:{p}:dead  pool:{p}:letter:{id}  task:{p}/{id}  pool:{p}:lane:{lane}:{t}  pool:{p}:lanes
--          pool:{p}:turns:{lane}  pool:{p}:tenants  pool:{p}:held  pool:{p}:mailbox:{n}  agent:{p}/{n}  process:{w}
--          pool:{p}:processes  pool:{p}:events  pool:{p}:suspects  pool:{p}:due
-- RETURNS  {"ok"} | {"unknown_task"} | {"unknown_agent"}, when the task was for an agent that has ended
-- AGAIN    "ok" for the same new id

local id, again = ARGV[4], ARGV[5]
if redis.call('EXISTS', task_key(again)) == 1 then
  return {'ok'}
end
local letter = POOL .. ':letter:' .. id
local record = redis.call('HGET', letter, 'record')
local head = record and parse_head(record)
if not head then
  return {'unknown_task'}
end
local worker, status = unpack(redis.call('HMGET', agent_key(head.agent), 'process_id', 'status'))
if head.agent ~= '-' and not status then
  return {'unknown_agent'}
end
-- Nobody waits for it, its key is spent, and its parent has gone on.
local is_batch = string.sub(head.lane, 1, 5) == 'batch'
local options = 'replays=' .. id .. (is_batch and ',batch=1' or '')
record = string.gsub(record, '^task %S+ (%S+ %S+ %S+ %S+ %d+) %S+', 'task - %1 ' .. options, 1)
redis.call('SET', task_key(again), record)
redis.call('ZREM', POOL .. ':dead', id)
redis.call('DEL', letter)
enqueue(again, parse_head(record))
if is_batch then
  promote_later(again, 0)
end
if head.agent == '-' then
  wake_workers(1)
elseif status == 'idle' then
  command(worker, {type = 'wake', agent_id = pool .. '/' .. head.agent}, true)
end
note('task.replayed', head.agent ~= '-' and head.agent or '', '', id .. ' as ' .. again)
return {'ok'}
