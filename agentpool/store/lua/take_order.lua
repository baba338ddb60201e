-- A master takes a start order that names it, and gives it a new secret: a process that was forked for it earlier, by a
-- master that died before it wrote that down, can no longer register.
--
-- @include base workers
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5]  master
-- ARGV[6]  secret         the new one
-- BUILDS   process:{w}
-- RETURNS  {"ok"} | {"begun"} when its process is known by now | {"gone"}
-- AGAIN    the same

local key = process_key(ARGV[4])
local status, master = unpack(redis.call('HMGET', key, 'status', 'master'))
if not status or status == 'lost' or master ~= ARGV[5] then
  return {'gone'}
end
if status ~= 'ordered' then
  return {'begun'}
end
redis.call('HSET', key, 'secret', ARGV[6])
return {'ok'}
