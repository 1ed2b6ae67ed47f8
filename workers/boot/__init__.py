"""Boots a disk in a virtual machine without a network, and judges by its console whether it comes up."""
