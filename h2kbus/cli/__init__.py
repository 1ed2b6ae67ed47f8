"""The command line: the only place that puts client, scheduler and workers together."""
