"""Measurements that can be repeated: `python -m jaxsparse bench --help`."""
