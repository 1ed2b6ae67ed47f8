"""Fuzzing: mutated images through the real operations, and any value through every decoder."""
