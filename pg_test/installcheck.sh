# `make installcheck`: a login is refused by the library, and let in when there is room. It is for a server that preloads
# it, with session_limit.enforcement on; psql is told which, and who the superuser is, by PGHOST and the like. Another
# role logs in by password, over TCP.
set -eu
export PGDATABASE=postgres
role=session_limit_installcheck
password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
# Nobody finds the password in the server log.
superuser() { PGOPTIONS='-c log_statement=none' psql -X -q -A -t -v ON_ERROR_STOP=1 -c "$1"; }
host=${INSTALLCHECK_HOST:-${PGHOST:-localhost}}
login() { PGHOST=$host PGUSER=$role PGPASSWORD=$password psql -X -A -t -c 'SELECT 1' 2>&1; }

superuser "CREATE ROLE $role LOGIN PASSWORD '$password'"
trap 'superuser "DROP ROLE $role"' EXIT
trap 'exit 1' HUP INT TERM
# The server knows nothing of labels: whoever is refused now is refused by the library.
superuser "SECURITY LABEL FOR session_limit ON ROLE $role IS '{\"max\": 0}'"
answer=$(login) && { echo "not ok: a role without room was let in"; exit 1; }
case $answer in
*"The limit is 0 sessions"*) echo "ok: a role without room is refused" ;;
*) echo "not ok: $answer"; exit 1 ;;
esac
superuser "SECURITY LABEL FOR session_limit ON ROLE $role IS NULL"
answer=$(login) || { echo "not ok: $answer"; exit 1; }
echo "ok: with room it is let in"
