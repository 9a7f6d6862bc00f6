"""What the benches share: clusters on this machine, the load generator, the kernel's accounting, and tables.

Needs python3 (3.9 or newer) and nothing else. Each bench is a program in the directory above this one.
"""
