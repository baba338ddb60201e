-- Cancel a task: at once while it waits; while it runs, its worker is told.
--
-- @include base workers tenants tasks
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  task           id
-- ARGV[5]  how            cancel; or withdraw: who asked for it waits no more, so it goes on if another asked for it with
--                         its key, and else its key means nothing any more
-- BUILDS   task:{p}/{id}  pool:{p}:leases  pool:{p}:worker:{w}:cancels  pool:{p}:lane:{lane}:{t}
--          pool:{p}:turns:{lane}  pool:{p}:mailbox:{n}  pool:{p}:due  pool:{p}:suspects  process:{w}
--          pool:{p}:attempts  pool:{p}:errors:{id}  pool:{p}:children:{id}  pool:{p}:key:{digest}  pool:{p}:followed
--          pool:{p}:trail:{id}  pool:{p}:audit  pool:{p}:worker:{w}:waits  tenant:{p}:{t}:waits
--          tenant:{p}:{t}:delayed
-- RETURNS  {"cancelled"} | {"asked", worker} | {"finished"} | {"unknown"} | {"shared"}
-- AGAIN    "finished" after "cancelled"; "asked" until the worker recorded an outcome

local id = ARGV[4]
local head = read_head(id)
if not head then
  return {redis.call('EXISTS', task_key(id)) == 1 and 'finished' or 'unknown'}
end
local digest = ARGV[5] == 'withdraw' and option(head, 'key')
if digest then
  local known, _, shared = read_key(digest)
  if known == id then
    if shared == 'shared' then
      return {'shared'}
    end
    redis.call('DEL', POOL .. ':key:' .. digest)
  end
end
local lease = read_lease(id)
if lease then
  redis.call('SADD', held(lease.worker, 'cancels'), id)
  command(lease.worker, {type = 'cancel', task_id = id}, true)
  return {'asked', lease.worker}
end
dequeue(id, head)
finish_task(id, 'cancelled', '', 'TaskCancelled', 'cancelled before it ran')
return {'cancelled'}
