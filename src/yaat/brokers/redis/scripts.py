"""What the server does in one step each: the scripts, in Lua.

Of each channel there are a stream, its publications (`offset-time` is the id of an entry, the time
in microseconds since 1970; `d` is the envelope, `x` when it expires, in milliseconds), and a hash:
`e` the epoch, `o` the last offset, `r` the run id of the server that counted it.

The first command of a script that writes is one that a full server refuses (`deny-oom`): after it
no other is, so that a script is done whole or not at all.
"""

from hashlib import sha1
from typing import Final


class Script:
    """A script, and the name by which the server knows it once it has been executed."""

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self.sha: Final = sha1(text.encode()).hexdigest()  # noqa: S324 - the server's own name for it


# Where the channel stands. It was counted by a server with another run id: this one was started
# anew, or has taken over from the other, and may have lost something; so a new epoch begins. The
# caller knows the run id from the handshake of its connection, which leads to one process; only if
# the two differ is the server asked itself.
_STANDING: Final = """
local stream, known = KEYS[1], KEYS[2]
local run, fresh, lasting = ARGV[1], ARGV[2], ARGV[3]

local function standing()
  local has = redis.call('HMGET', known, 'e', 'o', 'r')
  local epoch, offset, counted_by = has[1], has[2], has[3]
  if epoch and run ~= '' and counted_by ~= run then
    run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or run
    if counted_by ~= run then epoch = false end
  end
  if epoch then return epoch, tonumber(offset) end
  redis.call('HSET', known, 'e', fresh, 'o', 0, 'r', run)
  redis.call('DEL', stream)
  redis.call('PEXPIRE', known, lasting)
  return fresh, 0
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
"""

PUBLISH: Final = Script(
    _STANDING
    + """
local once = KEYS[3]
local size, ttl, envelope = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local publish, live, once_ttl = ARGV[7], ARGV[8], ARGV[9]
local keeps = size > 0 and ttl > 0

local epoch, offset = '', 0
if keeps then epoch, offset = standing() end
if once then
  local first = redis.call('HMGET', once, 'o', 'e')
  if first[1] and (first[1] == '0' or first[2] == epoch) then
    return {tonumber(first[1]), first[2], 1}
  end
end
local time = now()
if keeps then
  offset = offset + 1
  redis.call('XADD', stream, 'MAXLEN', size, string.format('%.0f-%.0f', offset, time),
    'd', envelope, 'x', string.format('%.0f', math.floor(time / 1000) + ttl))
  redis.call('HSET', known, 'o', string.format('%.0f', offset))
  redis.call('PEXPIRE', stream, ttl)
  redis.call('PEXPIRE', known, lasting)
end
if once then
  redis.call('HSET', once, 'o', string.format('%.0f', offset), 'e', epoch)
  redis.call('PEXPIRE', once, once_ttl)
end
redis.call(publish, live, struct.pack('>BI8I8B', 1, offset, time, #epoch) .. epoch .. envelope)
return {offset, epoch, 0}
"""
)
"""KEYS: stream, hash[, idempotency key]. ARGV: run id, fresh epoch, position_ttl in ms, size, ttl
in ms, envelope, PUBLISH or SPUBLISH, its channel, once_ttl in ms.
Answer: offset, epoch, duplicate."""

# Expired entries are the oldest, unless the ttl was shortened: then the others are left out.
HISTORY: Final = Script(
    _STANDING
    + """
local command, from, to, limit = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])

local epoch, offset = standing()
redis.call('PEXPIRE', known, lasting)
local answer = {offset, epoch}
if limit == 0 then return answer end
local time = math.floor(now() / 1000)
repeat
  local expired = {}
  for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', 100)) do
    if tonumber(entry[2][4]) > time then break end
    expired[#expired + 1] = entry[1]
  end
  if #expired > 0 then redis.call('XDEL', stream, unpack(expired)) end
until #expired < 100
local entries
if limit > 0 then
  entries = redis.call(command, stream, from, to, 'COUNT', limit)
else
  entries = redis.call(command, stream, from, to)
end
for _, entry in ipairs(entries) do
  if tonumber(entry[2][4]) > time then
    answer[#answer + 1] = entry[1]
    answer[#answer + 1] = entry[2][2]
  end
end
return answer
"""
)
"""KEYS: stream, hash. ARGV: run id, fresh epoch, position_ttl in ms, XRANGE or XREVRANGE, its two
bounds, limit (-1: none). Answer: offset, epoch, then id and envelope of each entry."""

REMOVE: Final = Script(
    _STANDING
    + """
standing()
redis.call('DEL', stream)
return 1
"""
)
"""KEYS: stream, hash. ARGV: run id, fresh epoch, position_ttl in ms."""

# Who is there: a hash client -> `arrival\n` and what is told of it, a sorted set client -> until
# when, a hash client -> user, and a hash user -> how many clients. All by the server's clock.
_PRESENCE: Final = """
local clients, expiries, users, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ttl = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function lasting()
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, 2 * ttl) end
end

local function count(user, step)
  if user and redis.call('HINCRBY', counts, user, step) <= 0 then
    redis.call('HDEL', counts, user)
  end
end

local function remove(client)
  local was = redis.call('ZSCORE', expiries, client)
  redis.call('ZREM', expiries, client)
  redis.call('HDEL', clients, client)
  count(redis.call('HGET', users, client), -1)
  redis.call('HDEL', users, client)
  return was and tonumber(was) > now
end

local function sweep()
  local gone = redis.call('ZRANGEBYSCORE', expiries, '-inf', now, 'LIMIT', 0, 1000)
  for _, client in ipairs(gone) do remove(client) end
  return #gone == 1000
end
"""

PRESENCE_ADD: Final = Script(
    _PRESENCE
    + """
local news = 0
-- One of the two may have been evicted.
local is_whole = redis.call('EXISTS', users) == redis.call('EXISTS', counts)
for i = 2, #ARGV, 4 do
  local client, has_user, user, told = ARGV[i], ARGV[i + 1] == '1', ARGV[i + 2], ARGV[i + 3]
  local until_ = tonumber(redis.call('ZSCORE', expiries, client) or 0)
  redis.call('ZADD', expiries, now + ttl, client)
  local arrival = string.format('%s.%06d.%06d', time[1], tonumber(time[2]), i)
  if until_ > now then
    arrival = string.match(redis.call('HGET', clients, client) or '', '^[^\\n]*') or arrival
  else
    news = news + 1
  end
  redis.call('HSET', clients, client, arrival .. '\\n' .. told)
  local before = redis.call('HGET', users, client)
  if before ~= (has_user and user) then
    count(before, -1)
    redis.call('HDEL', users, client)
    if has_user then
      redis.call('HSET', users, client, user)
      count(user, 1)
    end
  end
end
while sweep() do end
if not is_whole then
  redis.call('DEL', counts)
  for _, user in ipairs(redis.call('HVALS', users)) do count(user, 1) end
end
lasting()
return news
"""
)
"""KEYS: the four. ARGV: presence_ttl in ms; for each client its name, 1 if it has a user, the user,
what is told of it. Answer: how many are new."""

PRESENCE_REMOVE: Final = Script(_PRESENCE + "return remove(ARGV[2]) and 1 or 0\n")
"""KEYS: the four. ARGV: presence_ttl in ms, client. Answer: whether it was there."""

PRESENCE_GET: Final = Script(
    _PRESENCE
    + """
local there = redis.call('ZRANGEBYSCORE', expiries, string.format('(%.0f', now), '+inf')
local answer = {}
for i, client in ipairs(there) do answer[i] = redis.call('HGET', clients, client) end
return answer
"""
)
"""KEYS: the four. ARGV: presence_ttl in ms. Answer: what is told of each."""

PRESENCE_STATS: Final = Script(
    _PRESENCE
    + """
if sweep() then return {} end
return {redis.call('HLEN', clients), redis.call('HLEN', counts)}
"""
)
"""KEYS: the four. ARGV: presence_ttl in ms. Answer: clients and users; empty: ask once more, there
were many to sweep."""

ALL: Final = (
    *(PUBLISH, HISTORY, REMOVE),
    *(PRESENCE_ADD, PRESENCE_REMOVE, PRESENCE_GET, PRESENCE_STATS),
)
