#!/bin/sh
# Creates the database at the first start and runs the server, as the image of PostgreSQL does with the
# settings that docker-compose.yml has.
set -eu
sockets=/var/run/postgresql
if [ "$(id -u)" = 0 ]; then
	mkdir -p "$PGDATA" $sockets
	chown -R postgres: /var/lib/postgresql $sockets
	exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0"
fi
if ! [ -e "$PGDATA/PG_VERSION" ]; then
	password=$(mktemp)
	echo "$POSTGRES_PASSWORD" >"$password"
	# shellcheck disable=SC2086
	initdb --username="$POSTGRES_USER" --pwfile="$password" $POSTGRES_INITDB_ARGS
	rm "$password"
	echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
	pg_ctl start --wait --options="-c listen_addresses= -c unix_socket_directories=$sockets"
	createdb --host=$sockets --username="$POSTGRES_USER" "$POSTGRES_DB"
	pg_ctl stop --wait
fi
exec postgres -c "listen_addresses=*" -c unix_socket_directories=$sockets
