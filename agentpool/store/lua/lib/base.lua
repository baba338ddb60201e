-- Every script: its pool, the time, and how it tells others.
-- KEYS[1] is `pool:<p>`; ARGV[1..3] are the pool's name, the prefix of keys and the prefix of channels.

local POOL = KEYS[1]
local pool, prefix, channels = ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

-- JSON of flat words and small numbers. cjson writes "/" as "\/", which people who read along need not see.
local function to_json(message)
  return (string.gsub(cjson.encode(message), '\\/', '/'))
end

-- Publishing is a hint: a user without the right to publish, or nobody listening, changes nothing.
local function publish(channel, text)
  redis.pcall('PUBLISH', channels .. channel, text)
end

local function tell_leader(what)
  publish('pool:' .. pool .. ':leader', what)
end

local function note(event, agent, worker, detail)
  redis.call('XADD', POOL .. ':events', 'MAXLEN', '~', 10000, '*', 'type', event, 'at', now,
    'agent_id', agent ~= '' and pool .. '/' .. agent or '', 'process_id', worker, 'detail', detail or '')
end

local function remember(kind, id, fields)
  redis.call('XADD', POOL .. ':history', 'MAXLEN', '~', 1000, '*', 'kind', kind, 'id', id, 'ended_at', now,
    unpack(fields))
end

local function pool_exists()
  local status = redis.call('HGET', POOL, 'status')
  return status and status ~= 'removed'
end

-- The id of this run of the server: another one means that it started anew, maybe without its latest writes. '' where
-- it may not be read.
local function server_run()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end

-- What follows from a text alone is remembered from call to call: for each kind of it, of many texts the latest.
local MEMORY_SIZE = 500
local MEMORIES = {}

local function recall(kind, text)
  local memory = MEMORIES[kind]
  return memory and memory.values[text]
end

local function memorize(kind, text, value)
  local memory = MEMORIES[kind]
  if not memory or memory.size == MEMORY_SIZE then
    memory = {size = 0, values = {}}
    MEMORIES[kind] = memory
  end
  memory.size = memory.size + 1
  memory.values[text] = value
  return value
end

-- Fields of the pool that scripts go by. Who needs one needs others, too, so they are read together, once.
local POOL_FIELDS = {'max_input_bytes', 'max_queued', 'max_queued_pool', 'placement', 'queued', 'delayed', 'rate_since',
  'rate_count', 'rate', 'mean_ms', 'tenant_limits', 'virtual_time', 'result_ttl_ms', 'status'}
local pool_fields = nil

-- A field of the pool as this script found it.
local function pool_field(name)
  if not pool_fields then
    pool_fields = {}
    for at, value in ipairs(redis.call('HMGET', POOL, unpack(POOL_FIELDS))) do
      pool_fields[POOL_FIELDS[at]] = value
    end
  end
  return pool_fields[name]
end

local function pool_number(name)
  return tonumber(pool_field(name)) or 0
end

local function agent_key(name)
  return prefix .. 'agent:' .. pool .. '/' .. name
end

-- The fenced lock `<fence> <holder>`, exactly as the caller holds it.
local function holds(lock, token)
  return token ~= '' and redis.call('GET', prefix .. 'lock:pool:' .. pool .. ':' .. lock) == token
end
