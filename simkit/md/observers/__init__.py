"""Observers: what looks at a simulation while it runs, and keeps or judges what it sees."""
