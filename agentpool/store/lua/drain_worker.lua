-- Take a worker out of the index and tell it to finish and hand over. Anyone may ask for a drain.
--
-- @include base workers
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  reason         for the record
-- ARGV[6]  idle           "1": only if nothing is on it, and the wanted size goes down by one; else "0"
-- ARGV[7]  token          of the leader that decided it; empty: someone asked for it
-- BUILDS   lock:pool:{p}:leader  process:{w}    pool:{p}:processes  pool:{p}:draining  pool:{p}:worker:{w}:agents
--          pool:{p}:worker:{w}:tasks  pool:{p}:events
-- RETURNS  {"ok"} | {"unknown"} | {"starting"} | {"busy"} | {"fenced"}
-- AGAIN    "ok"; a second command is published, nothing else changes

if ARGV[7] ~= '' and not holds('leader', ARGV[7]) then
  return {'fenced'}
end
local worker = ARGV[4]
local key = process_key(worker)
local status = redis.call('HGET', key, 'status')
if not status or status == 'lost' then
  return {'unknown'}
end
if status == 'ordered' or status == 'starting' then
  return {'starting'}
end
if status == 'ready' then
  if ARGV[6] == '1' then
    if redis.call('EXISTS', held(worker, 'agents'), held(worker, 'tasks')) > 0 then
      return {'busy'}
    end
    local desired = tonumber(redis.call('HGET', POOL, 'desired')) or 1
    redis.call('HSET', POOL, 'desired', math.max(desired - 1, 0))
  end
  redis.call('HSET', key, 'status', 'draining', 'reason', ARGV[5])
  redis.call('ZADD', POOL .. ':draining', now, worker)
  rescore(worker)
  note('worker.draining', '', worker, ARGV[5])
  tell_leader('worker draining')
end
command(worker, {type = 'drain'}, status == 'ready')
return {'ok'}
