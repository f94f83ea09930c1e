"""Measuring in order to choose: the break-even points that the dispatcher reads."""
