"""The fault campaign: real processes, injected faults, and a checker over what they left behind."""
