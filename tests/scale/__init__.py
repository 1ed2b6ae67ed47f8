"""Measures what a fleet costs the server: idle workers, lanes, and a million jobs that wait."""
