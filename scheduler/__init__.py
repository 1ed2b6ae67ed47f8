"""The scheduler: commands in, lane publications out."""
