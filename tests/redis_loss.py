"""A Redis that loses everything, as its own users may make it: FLUSHALL is not among their commands."""

from __future__ import annotations

import redis.asyncio

_DELETE_ALL = """
local cursor = '0'
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do redis.call('DEL', key) end
until cursor == '0'
"""


async def lose_everything(url: str) -> None:
    """Delete every key, at once."""
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.eval(_DELETE_ALL, 0)
