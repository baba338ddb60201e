-- Cancel a task: at once while it waits; while it runs, its worker is told.
--
-- @include base workers tasks
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  task           id
-- BUILDS   task:{p}/{id}  pool:{p}:leases  pool:{p}:worker:{w}:cancels  pool:{p}:lane:{type}:{t}  pool:{p}:lanes
--          pool:{p}:mailbox:{n}  process:{w}
-- RETURNS  {"cancelled"} | {"asked", worker} | {"finished"} | {"unknown"}
-- AGAIN    "finished" after "cancelled"; "asked" until the worker recorded an outcome

local id = ARGV[4]
local record = redis.call('GETRANGE', task_key(id), 0, 400)
if record == '' then
  return {'unknown'}
end
local name, type, tenant = string.match(record, '^task %S+ (%S+) (%S+) (%S+)\n')
if not name then
  return {'finished'}
end
local worker = redis.call('HGET', POOL .. ':leases', id)
if worker then
  redis.call('SADD', held(worker, 'cancels'), id)
  command(worker, {type = 'cancel', task_id = id}, true)
  return {'asked', worker}
end
if name ~= '-' then
  redis.call('ZREM', POOL .. ':mailbox:' .. name, id)
else
  local queue = POOL .. ':lane:' .. type .. ':' .. tenant
  redis.call('ZREM', queue, id)
  if redis.call('EXISTS', queue) == 0 then
    redis.call('ZREM', POOL .. ':lanes', type .. ':' .. tenant)
  end
end
finish_task(id, plain_outcome('cancelled', '', 'TaskCancelled', 'cancelled before it ran'), result_ttl())
return {'cancelled'}
