"""agentpool: pools of long-lived asynchronous agents, in worker processes, on Redis."""
