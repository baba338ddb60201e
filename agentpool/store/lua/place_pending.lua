-- Place agents that wait, longest first, while there is room: what makes a lost hint harmless.
--
-- @include base workers tenants tasks agents
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  limit          agents in this call, at most 100
-- ARGV[5]  token          of the leader
-- BUILDS   lock:pool:{p}:leader  pool:{p}:pending  pool:{p}:processes  agent:{p}/{n}  process:{w}
--          pool:{p}:worker:{w}:agents  pool:{p}:events  pool:{p}:affinity  pool:{p}:served  pool:{p}:worker:{w}:tasks
-- RETURNS  {"ok", placed, left that are due, ms until the next is due or -1} | {"fenced"}
-- AGAIN    places the next ones

if not holds('leader', ARGV[5]) then
  return {'fenced'}
end
local pending = POOL .. ':pending'
local placed = 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', pending, '-inf', now, 'LIMIT', 0, ARGV[4])) do
  local worker = pick_for(name)
  if worker then
    if assign(name, worker) then
      placed = placed + 1
    end
    rescore(worker)
  elseif #workers_with_room(1) == 0 then
    break
  end
end
local due = redis.call('ZCOUNT', pending, '-inf', now)
local later = redis.call('ZRANGEBYSCORE', pending, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {'ok', placed, due, later[2] and later[2] - now or -1}
