# `make installcheck`: a login is refused by the library, and let in when there is room. It is for a server that preloads
# it; psql is told which, and who the superuser is, by PGHOST and the like.
set -eu
export PGDATABASE=postgres
role=session_limit_installcheck
superuser() { psql -X -q -A -t -v ON_ERROR_STOP=1 -c "$1"; }
# The password is for servers that ask for one.
login() { PGUSER=$role PGPASSWORD=$role psql -X -A -t -c 'SELECT 1' 2>&1; }

superuser "CREATE ROLE $role LOGIN PASSWORD '$role'"
trap 'superuser "DROP ROLE $role"' EXIT
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
