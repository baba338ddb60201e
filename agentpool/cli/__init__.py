"""The two commands, as click groups without logic: `master.py` is agentpool-master, `operator.py` is agentpool."""
