#!/bin/sh
# Start Redis with one user, restricted to Forethought's keys and to non-administrative commands.
# Only the password's hash is written, to memory, and never appears on a command line.
set -eu
hash=$(tr -d '\r\n' </run/secrets/redis/password | sha256sum | cut -d ' ' -f 1)
printf 'user default on #%s ~forethought:* &* +@all -@admin -@dangerous +info\n' "$hash" >/tmp/users.acl
exec redis-server /etc/redis/redis.conf
