-- Someone follows a task: from now on each change of it is written to its trail.
--
-- @include base workers tenants tasks
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  task           id
-- BUILDS   task:{p}/{id}  pool:{p}:followed  pool:{p}:leases  pool:{p}:due
-- RETURNS  {"ok", queued, delayed, leased or finished, worker or ""} | {"unknown"}
-- AGAIN    the same

local id = ARGV[4]
if redis.call('EXISTS', task_key(id)) == 0 then
  return {'unknown'}
end
if not read_head(id) then
  return {'ok', 'finished', ''}
end
-- Those who died while they followed are forgotten with the whole hash.
redis.call('HSET', POOL .. ':followed', id, now)
redis.call('EXPIRE', POOL .. ':followed', 86400)
local lease = read_lease(id)
if lease then
  return {'ok', 'leased', lease.worker}
end
return {'ok', redis.call('ZSCORE', POOL .. ':due', 'start ' .. id) and 'delayed' or 'queued', ''}
