"""The pipeline beside other job queues, turn by turn in one run: `make bench-peers`."""
