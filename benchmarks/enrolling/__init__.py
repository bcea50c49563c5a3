"""Enrollment measured: the parts of ``benchmarks/enroll.py``."""
