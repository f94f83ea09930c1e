"""What every op shares. Knows no op, no format, no framework."""
