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

local function agent_key(name)
  return prefix .. 'agent:' .. pool .. '/' .. name
end

-- The fenced lock `<fence> <holder>`, exactly as the caller holds it.
local function holds(lock, token)
  return token ~= '' and redis.call('GET', prefix .. 'lock:pool:' .. pool .. ':' .. lock) == token
end
