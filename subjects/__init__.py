"""The wire contract of h2kbus: messages, states, subjects and JetStream declarations, as pure data."""
