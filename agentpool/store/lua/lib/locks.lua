-- Locks with a lease and a fence: `<fence> <holder>`. Needs base.lua.

-- Take or extend a lock. The fence is above every earlier one, also when the server lost its latest writes.
local function take(lock, holder, lease_ms)
  local key = prefix .. 'lock:pool:' .. pool .. ':' .. lock
  local token = redis.call('GET', key)
  if token then
    if string.match(token, '^%d+ (.+)$') ~= holder then
      return nil, token
    end
    redis.call('PEXPIRE', key, lease_ms)
    return token, nil
  end
  local field = lock == 'leader' and 'fence' or lock .. '_fence'
  local fence = math.max((tonumber(redis.call('HGET', POOL, field)) or 0) + 1, now)
  redis.call('HSET', POOL, field, fence)
  token = string.format('%.0f', fence) .. ' ' .. holder
  redis.call('SET', key, token, 'PX', lease_ms)
  return token, nil
end
