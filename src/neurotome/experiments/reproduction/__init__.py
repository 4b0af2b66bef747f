"""The founding report beside what is measured: its printed numbers, its tables, its claims."""
