-- A worker says, after the server has started anew, which tasks it has or has just handed in: a lease that was lost
-- with the server's latest writes is written again. And which it has not, though they are leased to it: these go back.
--
-- @include base workers tenants tasks agents claiming
-- @flags allow-oom
-- KEYS[1]  pool:{p}       HASH
-- ARGV[4]  worker
-- ARGV[5…] id, record     of each task, at most 50: the record as it was submitted, or '' of what it has not
-- BUILDS   process:{w}  pool:{p}:worker:{w}:tasks  pool:{p}:worker:{w}:runs  pool:{p}:worker:{w}:cancels
--          pool:{p}:worker:{w}:waits  pool:{p}:worker:{w}:agents  pool:{p}:leases  pool:{p}:lanes  task:{p}/{id}
--          pool:{p}:lane:{lane}:{t}  pool:{p}:turns:{lane}  pool:{p}:mailbox:{n}  pool:{p}:due  pool:{p}:suspects
--          pool:{p}:attempts  pool:{p}:followed  pool:{p}:trail:{id}  agent:{p}/{n}  tenant:{p}:{t}:tasks
--          pool:{p}:children:{id}  pool:{p}:held  pool:{p}:limits  pool:{p}:processes  pool:{p}:tenants
--          tenant:{p}:{t}:delayed  tenant:{p}:{t}:mail  tenant:{p}:{t}:requests  tenant:{p}:{t}:usage
--          tenant:{p}:{t}:waits  pool:{p}:audit  pool:{p}:errors:{id}  pool:{p}:key:{digest}
-- RETURNS  {"ok"} | {"gone"}
-- AGAIN    the same; what is leased stays

local worker = ARGV[4]
local status = redis.call('HGET', process_key(worker), 'status')
if not status or status == 'lost' then
  return {'gone'}
end
claimer.worker, taken = worker, new_taken()

-- Tell whether a task is for an agent that has ended: then it has no mailbox to wait in.
local function has_no_agent(head)
  return head.agent ~= '-' and redis.call('EXISTS', agent_key(head.agent)) == 0
end

local function end_with_agent(id)
  finish_task(id, 'agent_terminated', worker, 'AgentTerminated', 'its agent has ended')
end

local function give_back(id)
  local lease, rank = read_lease(id)
  local head = read_head(id)
  if not lease or lease.worker ~= worker then
    return
  end
  end_lease(worker, id, lease.tenant)
  if not head then
    return
  end
  if has_no_agent(head) then
    end_with_agent(id)
    return
  end
  enqueue(id, head, rank)
  if head.agent ~= '-' and redis.call('HGET', agent_key(head.agent), 'task_id') == id then
    redis.call('HSET', agent_key(head.agent), 'status', 'idle', 'task_id', '')
  end
end

local function take_again(id, record)
  if read_lease(id) then
    return -- this worker's, or by now another's
  end
  local head, key = read_head(id), task_key(id)
  if has_no_agent(head or parse_head(record)) then
    if head then
      dequeue(id, head)
      end_with_agent(id)
    end
    return
  end
  if head then
    dequeue(id, head)
  elseif redis.call('EXISTS', key) == 1 then
    return -- it has its outcome
  else
    redis.call('SET', key, record)
    head = parse_head(record)
  end
  local is_mail = head.agent ~= '-'
  lease_one(is_mail and 'runs' or 'tasks', id, now_us, record)
  if is_mail and redis.call('HGET', agent_key(head.agent), 'process_id') == worker then
    redis.call('HSET', agent_key(head.agent), 'status', 'active', 'task_id', id)
  end
end

for i = 5, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    give_back(ARGV[i])
  else
    take_again(ARGV[i], ARGV[i + 1])
  end
end
write_leases()
rescore(worker)
return {'ok'}
