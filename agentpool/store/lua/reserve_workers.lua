-- Order new workers before anything is forked, and name the master that shall start them.
--
-- @include base workers
-- @flags allow-oom
-- KEYS[1]  pool:{p}     HASH
-- ARGV[4]  leader       token
-- ARGV[5]  placement    token of the placement lock
-- ARGV[6]  master       id of the one that shall start them
-- ARGV[7]  max_starting workers that may be starting at once
-- ARGV[8…] id, secret   pairs, at most 100: each worker's id and the word by which it proves its order
-- BUILDS   lock:pool:{p}:leader  lock:pool:{p}:placement  process:{w}  pool:{p}:workers  pool:{p}:starting
--          pool:{p}:draining  pool:{p}:events
-- RETURNS  {"ok", id…} those ordered, which may be fewer | {"fenced"}
-- AGAIN    ids that are ordered already are returned again

if not (holds('leader', ARGV[4]) and holds('placement', ARGV[5])) then
  return {'fenced'}
end
local max_workers = tonumber(redis.call('HGET', POOL, 'max_workers'))
if redis.call('EXISTS', POOL .. ':draining') == 1 or redis.call('HGET', POOL, 'renewing') == '1' then
  -- One above the bound, so that what a draining worker gives up need not wait for its end, and a worker that is to be
  -- replaced need not leave before the other is there.
  max_workers = max_workers + 1
end
local ordered = {'ok'}
for i = 8, #ARGV, 2 do
  local worker = ARGV[i]
  local live = redis.call('ZCARD', POOL .. ':workers')
  local starting = redis.call('ZCARD', POOL .. ':starting')
  local known = redis.call('EXISTS', process_key(worker)) == 1
  if not known and (live >= max_workers or starting >= tonumber(ARGV[7])) then
    break
  end
  if not known then
    redis.call('HSET', process_key(worker), 'process_id', worker, 'pool_name', pool, 'status', 'ordered',
      'master', ARGV[6], 'secret', ARGV[i + 1], 'ordered_at', now, 'version', 0)
    redis.call('ZADD', POOL .. ':workers', now, worker)
    redis.call('ZADD', POOL .. ':starting', now, worker)
    note('worker.ordered', '', worker)
  end
  ordered[#ordered + 1] = worker
end
if #ordered > 1 then
  tell_leader('start ' .. ARGV[6])
end
return ordered
