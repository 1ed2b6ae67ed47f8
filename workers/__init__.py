"""The worker: pull, claim, execute, report."""
