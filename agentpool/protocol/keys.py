"""Every Redis key and channel, with its type, spelled here and nowhere else.

Lua builds the keys of things it finds (an agent, a worker's set) from the prefix that each script gets; the patterns
it may build stand in the script's header and must be among the ones here. Ids: an agent is `<pool>/<name>`, a task
`<pool>/<id>`, so any id tells where its keys are.
"""

from dataclasses import dataclass

__all__ = ["Keys", "pool_of", "split_id"]


def split_id(id: str) -> tuple[str, str]:
    """Split `<pool>/<name>`; the pool is empty when the id has no slash."""
    pool, slash, name = id.partition("/")
    return (pool, name) if slash else ("", id)


def pool_of(id: str) -> str:
    """Return the pool part of an agent's or task's id."""
    return split_id(id)[0]


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys under one optional namespace; channels also carry the database number, which pub/sub ignores."""

    namespace: str = ""
    db: int = 0

    @property
    def prefix(self) -> str:
        """What every key starts with: empty, or `<namespace>:`."""
        return f"{self.namespace}:" if self.namespace else ""

    @property
    def channel_prefix(self) -> str:
        """What every channel starts with."""
        return self.prefix + (f"db{self.db}:" if self.db else "")

    # -- of the installation ------------------------------------------------------------------------------------

    def pools(self) -> str:
        """SET of pool names."""
        return f"{self.prefix}pools"

    def install(self) -> str:
        """STRING: the random id of this installation, which marks its processes in `ps`."""
        return f"{self.prefix}install"

    # -- of a pool ----------------------------------------------------------------------------------------------

    def pool(self, pool: str) -> str:
        """HASH: settings as applied, desired size, floor, leader, fence, schema version."""
        return f"{self.prefix}pool:{pool}"

    def types(self, pool: str) -> str:
        """HASH: agent type -> JSON of what its class declares."""
        return f"{self.pool(pool)}:types"

    def processes(self, pool: str) -> str:
        """ZSET: worker id -> free slots, of the workers that take agents."""
        return f"{self.pool(pool)}:processes"

    def workers(self, pool: str) -> str:
        """ZSET: worker id -> last beat in ms (the order's time before the first), of all that are not gone."""
        return f"{self.pool(pool)}:workers"

    def starting(self, pool: str) -> str:
        """ZSET: worker id -> time ordered in ms, of workers ordered or starting."""
        return f"{self.pool(pool)}:starting"

    def draining(self, pool: str) -> str:
        """ZSET: worker id -> time the drain began in ms."""
        return f"{self.pool(pool)}:draining"

    def lost(self, pool: str) -> str:
        """ZSET: worker id -> time it was fenced in ms, of workers whose agents and tasks are being given back."""
        return f"{self.pool(pool)}:lost"

    def pending(self, pool: str) -> str:
        """ZSET: agent name -> time in ms from which it may be placed."""
        return f"{self.pool(pool)}:pending"

    def lanes(self, pool: str) -> str:
        """SET: every lane in which tasks ever waited: `<level>`, and after `+` each label that a worker must have."""
        return f"{self.pool(pool)}:lanes"

    def lane(self, pool: str, lane: str, tenant: str) -> str:
        """ZSET: task id -> rank, of one tenant's tasks in one lane."""
        return f"{self.pool(pool)}:lane:{lane}:{tenant}"

    def turns(self, pool: str, lane: str) -> str:
        """ZSET: tenant -> start tag in virtual ms, of the tenants whose tasks in this lane may be taken."""
        return f"{self.pool(pool)}:turns:{lane}"

    def tenants(self, pool: str) -> str:
        """ZSET: tenant -> finish tag: the virtual ms up to which it was served, as far as that is still ahead."""
        return f"{self.pool(pool)}:tenants"

    def held(self, pool: str) -> str:
        """SET: tenants at a limit, which have no turn until one of their tasks ends or their time comes."""
        return f"{self.pool(pool)}:held"

    def limits(self, pool: str) -> str:
        """HASH: tenant -> limits that were set live, `=<tenant>` -> those of the configuration; `name=value` words."""
        return f"{self.pool(pool)}:limits"

    def labels(self, pool: str) -> str:
        """HASH: host id -> the labels of its workers, as words."""
        return f"{self.pool(pool)}:labels"

    def hosts(self, pool: str) -> str:
        """ZSET: master id -> last beat in ms, of the masters that look after workers of the pool."""
        return f"{self.pool(pool)}:hosts"

    def host(self, pool: str, master_id: str) -> str:
        """HASH: one host as its master sees it: labels, room, release."""
        return f"{self.pool(pool)}:host:{master_id}"

    def affinity(self, pool: str) -> str:
        """HASH: tenant, or `<tenant>/<project>` -> the worker that its agents go to."""
        return f"{self.pool(pool)}:affinity"

    def served(self, pool: str) -> str:
        """ZSET: worker id -> time in us at which it last got an agent, where they are placed round robin."""
        return f"{self.pool(pool)}:served"

    def suspects(self, pool: str) -> str:
        """ZSET: task id -> time in ms, of tasks by type that may have killed a worker and shall run alone."""
        return f"{self.pool(pool)}:suspects"

    def due(self, pool: str) -> str:
        """ZSET: `<kind> <id>` -> time in ms: start, expire or promote a task, let a tenant go on."""
        return f"{self.pool(pool)}:due"

    def attempts(self, pool: str) -> str:
        """HASH: task id -> `attempts crashes alone starts suspect`, of tasks that did not end well the first time."""
        return f"{self.pool(pool)}:attempts"

    def errors(self, pool: str, id: str) -> str:
        """HASH: number of the attempt, `crash <n>` or `start <n>` -> JSON of what went wrong, of an unfinished task."""
        return f"{self.pool(pool)}:errors:{id}"

    def dead(self, pool: str) -> str:
        """ZSET: task id -> time in ms, of the dead letters."""
        return f"{self.pool(pool)}:dead"

    def letter(self, pool: str, id: str) -> str:
        """HASH: one dead letter: the task as submitted, its outcome, and `error:<n>` of each attempt."""
        return f"{self.pool(pool)}:letter:{id}"

    def key(self, pool: str, digest: str) -> str:
        """STRING: `<task id> <digest of the input>` of an idempotency key, and `shared` once it was found; expires some
        time after the task ended.
        """
        return f"{self.pool(pool)}:key:{digest}"

    def children(self, pool: str, id: str) -> str:
        """SET: unfinished tasks that this one waits for."""
        return f"{self.pool(pool)}:children:{id}"

    def followed(self, pool: str) -> str:
        """HASH: task id -> time in ms, of tasks whose changes someone follows."""
        return f"{self.pool(pool)}:followed"

    def trail(self, pool: str, id: str) -> str:
        """STREAM with expiry: what a task reported, and its changes since it is followed."""
        return f"{self.pool(pool)}:trail:{id}"

    def audit(self, pool: str) -> str:
        """STREAM: executions, a batch an entry, `lines` of JSON; the leader takes them to files and trims."""
        return f"{self.pool(pool)}:audit"

    def mailbox(self, pool: str, name: str) -> str:
        """ZSET: task id -> rank, of the tasks for one pinned agent."""
        return f"{self.pool(pool)}:mailbox:{name}"

    def snapshot(self, pool: str, name: str) -> str:
        """STRING: the state that an agent handed over when it was last moved."""
        return f"{self.pool(pool)}:snapshot:{name}"

    def ended(self, pool: str, name: str) -> str:
        """STRING with expiry: `<status> <operation> <incarnation> <why>` of an ended agent: repeats are told by it."""
        return f"{self.pool(pool)}:ended:{name}"

    def history(self, pool: str) -> str:
        """STREAM, capped: the last record of each ended agent and worker."""
        return f"{self.pool(pool)}:history"

    def events(self, pool: str) -> str:
        """STREAM, capped: what happened, for people and programs."""
        return f"{self.pool(pool)}:events"

    def tenant_agents(self, pool: str, tenant: str) -> str:
        """SET: names of the tenant's pinned agents, live and pending."""
        return f"{self.prefix}tenant:{pool}:{tenant}:agents"

    def tenant_tasks(self, pool: str, tenant: str) -> str:
        """SET: ids of the tenant's leased tasks."""
        return f"{self.prefix}tenant:{pool}:{tenant}:tasks"

    def tenant_delayed(self, pool: str, tenant: str) -> str:
        """SET: ids of the tenant's tasks that may not begin yet."""
        return f"{self.prefix}tenant:{pool}:{tenant}:delayed"

    def tenant_waits(self, pool: str, tenant: str) -> str:
        """SET: ids of the tenant's leased tasks that wait for tasks of their own."""
        return f"{self.prefix}tenant:{pool}:{tenant}:waits"

    def tenant_mail(self, pool: str, tenant: str) -> str:
        """SET: names of the tenant's agents whose mail waits because the tenant is at a limit."""
        return f"{self.prefix}tenant:{pool}:{tenant}:mail"

    def tenant_tokens(self, pool: str, tenant: str) -> str:
        """HASH with expiry: second -> tokens, used or reserved, of the last minute."""
        return f"{self.prefix}tenant:{pool}:{tenant}:tokens"

    def tenant_requests(self, pool: str, tenant: str) -> str:
        """HASH with expiry: second -> tasks begun, of the last minute."""
        return f"{self.prefix}tenant:{pool}:{tenant}:requests"

    def tenant_usage(self, pool: str, tenant: str) -> str:
        """HASH with expiry: mean run time and tokens of the tenant's tasks, in all and by type; who was last."""
        return f"{self.prefix}tenant:{pool}:{tenant}:usage"

    def leader_lock(self, pool: str) -> str:
        """STRING with expiry: `<fence> <master id>` of the master that leads the pool."""
        return f"{self.prefix}lock:pool:{pool}:leader"

    def placement_lock(self, pool: str) -> str:
        """STRING with expiry: `<fence> <master id>` during work of several steps on placement."""
        return f"{self.prefix}lock:pool:{pool}:placement"

    # -- of a worker, an agent, a task --------------------------------------------------------------------------

    def process(self, worker_id: str) -> str:
        """HASH: one live worker."""
        return f"{self.prefix}process:{worker_id}"

    def worker_agents(self, pool: str, worker_id: str) -> str:
        """SET: names of the agents that shall be on the worker."""
        return f"{self.pool(pool)}:worker:{worker_id}:agents"

    def worker_tasks(self, pool: str, worker_id: str) -> str:
        """ZSET: task id -> time leased in ms, of tasks by type; each holds a slot."""
        return f"{self.pool(pool)}:worker:{worker_id}:tasks"

    def worker_runs(self, pool: str, worker_id: str) -> str:
        """ZSET: task id -> time leased in ms, of tasks from mailboxes; their agents hold the slots."""
        return f"{self.pool(pool)}:worker:{worker_id}:runs"

    def worker_cancels(self, pool: str, worker_id: str) -> str:
        """SET: ids of running tasks that the worker shall cancel."""
        return f"{self.pool(pool)}:worker:{worker_id}:cancels"

    def worker_waits(self, pool: str, worker_id: str) -> str:
        """SET: ids of leased tasks that wait for tasks of their own; each lends its slot to such tasks."""
        return f"{self.pool(pool)}:worker:{worker_id}:waits"

    def leases(self, pool: str) -> str:
        """HASH: task id -> `<worker> <estimated ms> <reserved tokens> <header line> <rank>`, of all leased tasks."""
        return f"{self.pool(pool)}:leases"

    def agent(self, agent_id: str) -> str:
        """HASH: one live pinned agent."""
        return f"{self.prefix}agent:{agent_id}"

    def task(self, task_id: str) -> str:
        """STRING: the task as submitted, later its outcome (see `protocol/tasks.py`)."""
        return f"{self.prefix}task:{task_id}"

    # -- channels -----------------------------------------------------------------------------------------------

    def worker_channel(self, worker_id: str) -> str:
        """Commands for one worker."""
        return f"{self.channel_prefix}worker:{worker_id}:commands"

    def pool_channel(self, pool: str) -> str:
        """A readable copy of every command of the pool."""
        return f"{self.channel_prefix}pool:{pool}:commands"

    def leader_channel(self, pool: str) -> str:
        """Hints for the masters of a pool: room is wanted, a worker registered or left."""
        return f"{self.channel_prefix}pool:{pool}:leader"

    def client_channel(self, client_id: str) -> str:
        """Answers for one client."""
        return f"{self.channel_prefix}client:{client_id}:replies"
