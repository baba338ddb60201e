-- Write a pool's settings as its leader applies them.
--
-- @include base workers tenants tasks
-- @flags allow-oom
-- KEYS[1]  pool:{p}     HASH
-- ARGV[4]  token        of the leader
-- ARGV[5]  schema       version of what this release writes
-- ARGV[6]  schema_min   oldest schema whose releases may take part beside this one
-- ARGV[7]  types        number of agent types that follow
-- ARGV[8…] type, JSON   pairs; then field, value pairs of settings, of which `=<tenant>` are limits of that tenant
-- BUILDS   lock:pool:{p}:leader  pool:{p}:types  pool:{p}:limits  pool:{p}:events  pool:{p}:held  pool:{p}:lanes
--          pool:{p}:lane:{lane}:{t}  pool:{p}:turns:{lane}  pool:{p}:tenants  tenant:{p}:{t}:mail  agent:{p}/{n}
--          pool:{p}:processes  pool:{p}:due  process:{w}  tenant:{p}:{t}:usage
-- RETURNS  {"ok"} | {"fenced"} | {"too_old", oldest schema that may take part, release of the pool}
-- AGAIN    the same

if not holds('leader', ARGV[4]) then
  return {'fenced'}
end
local schema, schema_min, release = unpack(redis.call('HMGET', POOL, 'schema', 'schema_min', 'release'))
schema, schema_min = tonumber(schema) or 0, tonumber(schema_min) or 0
if schema_min > tonumber(ARGV[5]) then
  return {'too_old', schema_min, release or ''}
end
local last_type = 7 + 2 * ARGV[7]
redis.call('DEL', POOL .. ':types')
for i = 8, last_type, 2 do
  redis.call('HSET', POOL .. ':types', ARGV[i], ARGV[i + 1])
end
redis.call('HSET', POOL, 'pool_name', pool, 'schema', math.max(schema, tonumber(ARGV[5])),
  'schema_min', math.max(schema_min, tonumber(ARGV[6])))
for _, field in ipairs(redis.call('HKEYS', POOL .. ':limits')) do
  if string.sub(field, 1, 1) == '=' then
    redis.call('HDEL', POOL .. ':limits', field)
  end
end
for i = last_type + 1, #ARGV, 2 do
  local of_tenant = string.sub(ARGV[i], 1, 1) == '='
  redis.call('HSET', of_tenant and POOL .. ':limits' or POOL, ARGV[i], ARGV[i + 1])
end
-- A floor stands only where somebody scaled; what is wanted stays within the bounds.
local low, high, floor, desired = unpack(redis.call('HMGET', POOL, 'min_workers', 'max_workers', 'floor', 'desired'))
low, high = tonumber(low), tonumber(high)
redis.call('HSET', POOL, 'floor', math.min(tonumber(floor) or 0, high),
  'desired', math.min(math.max(tonumber(desired) or 0, low), high))
-- Who was held by an earlier limit goes on, and is held again at its next turn if the new one says so too. Where more
-- are held, the others go on when one of their tasks ends.
local waiting = 0
for _, tenant in ipairs(redis.call('SRANDMEMBER', POOL .. ':held', 100)) do
  if let_go(tenant) then
    waiting = waiting + 1
  end
end
if waiting > 0 then
  wake_workers(waiting)
end
note('pool.applied', '', '')
return {'ok'}
