"""How many bytes may wait for a member in `apps.channels`, for it and for its tests."""

BUDGET = 65_536
"""Of a room whose policy is tested."""

ROOMY = 64 * 2**20
"""Of one in which nobody is to be too slow."""
