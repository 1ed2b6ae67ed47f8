"""The repairs of a guest: one module for each kind, and a table that says which operation does which."""
