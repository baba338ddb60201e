-- What waits for hosts with labels: the first of the agents that wait, and tasks that could begin if there were room.
--
-- @include base workers tenants
-- @flags no-writes
-- KEYS[1]  pool:{p}       HASH
-- BUILDS   pool:{p}:pending  agent:{p}/{n}  pool:{p}:lanes  pool:{p}:lane:{lane}:{t}  pool:{p}:turns:{lane}
--          pool:{p}:limits  tenant:{p}:{t}:tasks  tenant:{p}:{t}:waits  tenant:{p}:{t}:tokens
--          tenant:{p}:{t}:requests  tenant:{p}:{t}:usage
-- RETURNS  {labels with + between, count}…
-- AGAIN    reads only

local demand = {}

local function add(labels, count)
  if labels ~= '' and count > 0 then
    demand[labels] = (demand[labels] or 0) + count
  end
end

local types = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', POOL .. ':pending', '-inf', now, 'LIMIT', 0, 100)) do
  local type = redis.call('HGET', agent_key(name), 'agent_type') or ''
  types[type] = types[type] or redis.call('HGET', POOL, 'labels:' .. type) or ''
  add(types[type], 1)
end
for _, lane in ipairs(lanes()) do
  local labels = string.match(lane, '%+(.+)$')
  for _, tenant in ipairs(labels and redis.call('ZRANGE', POOL .. ':turns:' .. lane, 0, 99) or {}) do
    add(labels, math.min(redis.call('ZCARD', lane_key(lane, tenant)), (allowance(tenant))))
  end
end
local rows = {}
for labels, count in pairs(demand) do
  rows[#rows + 1] = {labels, count}
end
return rows
