"""The same job that does nothing, for each peer: what its worker loads, and the client that submits.

These modules run in the peers' own environment, without h2kbus: `python -m benchmarks.peers.jobs.with_arq 60`
submits, waits for the end and prints how long it took. `PEER_URL` says where the server is.
"""
