#!/bin/sh
# Run once, by the postgres image, when the database is made: the roles that may log in. What each of
# them may do is granted by the service `migrations`, after each upgrade.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set app="$CELORA_APP_PASSWORD" \
    --set worker="$CELORA_WORKER_PASSWORD" \
    --set reader="$CELORA_READER_PASSWORD" <<'SQL'
CREATE ROLE celora_app LOGIN PASSWORD :'app';
CREATE ROLE celora_worker LOGIN PASSWORD :'worker';
CREATE ROLE celora_reader LOGIN PASSWORD :'reader';
SQL
