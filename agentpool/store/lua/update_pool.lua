-- The leader records what it decided about the pool: the wanted size, stopped restarts, removal.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}     HASH
-- ARGV[4]  token        of the leader
-- ARGV[5]  field        desired, restarts, renewing or status
-- ARGV[6]  value
-- ARGV[7]  event        to note, or empty
-- BUILDS   lock:pool:{p}:leader  pool:{p}:events
-- RETURNS  {"ok"} | {"fenced"}
-- AGAIN    the same, with a second event

if not holds('leader', ARGV[4]) then
  return {'fenced'}
end
redis.call('HSET', POOL, ARGV[5], ARGV[6])
if ARGV[7] ~= '' then
  note(ARGV[7], '', '', ARGV[6])
end
return {'ok'}
