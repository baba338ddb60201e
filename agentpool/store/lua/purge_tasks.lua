-- Throw dead letters away.
--
-- @include base
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4…] task           ids, at most 100
-- BUILDS   pool:{p}:dead  pool:{p}:letter:{id}
-- RETURNS  {"ok", thrown away}
-- AGAIN    "ok", 0

local gone = 0
for i = 4, #ARGV do
  gone = gone + redis.call('ZREM', POOL .. ':dead', ARGV[i])
  redis.call('DEL', POOL .. ':letter:' .. ARGV[i])
end
return {'ok', gone}
