"""Schedules, methods and the runners that use them."""
