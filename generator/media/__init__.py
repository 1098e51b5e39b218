"""Bytes -> something a machine boots: a raw disk, a CD, a multiboot kernel."""
