"""Sparse formats: patterns as pytrees, and weights that have one."""
