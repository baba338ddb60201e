-- Let the indexes of workers say again what their records say. One without a record that holds something gets one, as
-- lost, so that the leader gives back what it held.
--
-- @include base workers
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] worker         ids, at most 100
-- BUILDS   pool:{p}:processes  pool:{p}:worker:{w}:agents  pool:{p}:worker:{w}:cancels  pool:{p}:worker:{w}:runs
--          pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:waits  process:{w}
-- RETURNS  {"ok"}
-- AGAIN    the same

local INDEXES = {workers = 'ordered starting ready draining', starting = 'ordered starting', draining = 'draining',
  lost = 'lost'}

local function holds_anything(worker)
  return redis.call('EXISTS', held(worker, 'agents'), held(worker, 'tasks'), held(worker, 'runs'),
    held(worker, 'cancels'), held(worker, 'waits')) > 0
end

for i = 4, #ARGV do
  local worker = ARGV[i]
  local key = process_key(worker)
  local status = redis.call('HGET', key, 'status')
  if not status and holds_anything(worker) then
    status = 'lost'
    redis.call('HSET', key, 'process_id', worker, 'pool_name', pool, 'status', status, 'version', 0,
      'reason', 'its record was gone')
    tell_leader('worker lost')
  end
  for index, statuses in pairs(INDEXES) do
    if status and string.find(' ' .. statuses .. ' ', ' ' .. status .. ' ', 1, true) then
      redis.call('ZADD', POOL .. ':' .. index, 'NX', now, worker)
    else
      redis.call('ZREM', POOL .. ':' .. index, worker)
    end
  end
  if status then
    rescore(worker)
  else
    redis.call('ZREM', POOL .. ':processes', worker)
  end
end
return {'ok'}
