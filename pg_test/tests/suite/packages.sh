# Run by packages.rs, as root of a Debian 12 of its own: makes the package of /session_limit, whose libraries are built already,
# and lives with it.
set -eux
export DEBIAN_FRONTEND=noninteractive

cd /session_limit
pg_buildext updatecontrol
# The build's dependencies were for the libraries.
dpkg-buildpackage --build=binary --no-pre-clean --no-check-builddeps -us -uc
deb=$(echo /postgresql-15-session-limit_*.deb)
test -f /postgresql-15-session-limit-dbgsym_*.deb
# docs/packaging.md says which glibc that is.
dpkg-deb -f "$deb" Depends | grep -F 'libc6 (>= 2.34)'
dpkg-deb -c "$deb" | grep -F /examples/monitoring/grafana.json
cd /

apt-get install -y "$deb"
for library in session_limit session_limit_servers; do
    file -b /usr/lib/postgresql/15/lib/$library.so | grep -F ', stripped'
done
pg_createcluster 15 limited -p 5499 -o shared_preload_libraries=session_limit -- --auth-local=trust
pg_ctlcluster 15 limited start

as() { psql -X -A -t -p 5499 -U "$1" -d postgres -c "$2" 2>&1; }
superuser() { as postgres "$1"; }
fail() { echo "not ok: $1"; exit 1; }
wait_until() {
    for attempt in $(seq 600); do
        [ "$(superuser "SELECT $1")" = t ] && return
        sleep 0.1
    done
    fail "$1"
}
is_in() { echo "(SELECT count(*) = $1 FROM pg_stat_activity WHERE usename = 'alice')"; }
# The words are the library's: the server alone says less.
is_refused() {
    answer=$(as alice 'SELECT 1') && fail "$1: alice was let in twice"
    case $answer in
    *'The limit is 1 session (CONNECTION LIMIT of role alice)'*) ;;
    *) fail "$1: $answer" ;;
    esac
}
take_the_place() {
    as alice 'SELECT pg_sleep(3600)' &
    wait_until "$(is_in 1)"
}

superuser 'CREATE EXTENSION session_limit'
superuser 'CREATE ROLE alice LOGIN CONNECTION LIMIT 1'
take_the_place
is_refused 'installed'

# Under the running server: it keeps the library that it has mapped.
started=$(superuser 'SELECT pg_postmaster_start_time()')
session=$(superuser "SELECT pid FROM pg_stat_activity WHERE usename = 'alice'")
apt-get install -y --reinstall "$deb"
grep -F 'session_limit.so (deleted)' "/proc/$(head -n 1 /var/lib/postgresql/15/limited/postmaster.pid)/maps"
is_refused 'installed again'
[ "$(superuser "SELECT pid FROM pg_stat_activity WHERE usename = 'alice'")" = "$session" ] || fail 'the session ended'
superuser "SELECT pg_terminate_backend($session)"
wait_until "$(is_in 0)"
take_the_place
is_refused 'installed again, and left'

apt-get remove -y postgresql-15-session-limit
is_refused 'removed'
[ "$(superuser 'SELECT pg_postmaster_start_time()')" = "$started" ] || fail 'the server was started anew'
left=$(find / -xdev -path /session_limit -prune -o -name '*session_limit*' -path '*postgresql*' -print)
[ -z "$left" ] || fail "left behind: $left"
# docs/install.md says that the setting goes before the next start, and why.
if pg_ctlcluster 15 limited restart; then fail 'a server without the library it preloads'; fi
pg_conftool 15 limited remove shared_preload_libraries
pg_ctlcluster 15 limited start
[ "$(as alice 'SELECT 1')" = 1 ] || fail 'alice is not let in'
pg_dropcluster --stop 15 limited
echo 'all is well'
