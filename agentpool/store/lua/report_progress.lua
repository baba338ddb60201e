-- A worker passes on what its tasks report while they run.
--
-- @include base workers tenants tasks
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5…] id, progress   pairs, at most 50; progress is JSON
-- BUILDS   pool:{p}:leases  pool:{p}:trail:{id}
-- RETURNS  {"ok", reports taken}: those of tasks that are not the worker's any more are passed over
-- AGAIN    the reports stand twice in the trail

local taken = 0
for i = 5, #ARGV, 2 do
  local lease = read_lease(ARGV[i])
  if lease and lease.worker == ARGV[4] then
    local trail = POOL .. ':trail:' .. ARGV[i]
    redis.call('XADD', trail, 'MAXLEN', '~', 1000, '*', 'type', 'task.progress', 'at', now, 'detail', ARGV[i + 1])
    redis.call('PEXPIRE', trail, result_ttl())
    taken = taken + 1
  end
end
return {'ok', taken}
