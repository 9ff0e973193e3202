-- session_limit 0.2.0. The library enforces limits without any of this; these objects show and set them.

-- Its settings are there only if the library was preloaded. A restore must work without.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_settings
        WHERE name = 'session_limit.enforcement' AND vartype = 'enum'
    ) THEN
        RAISE WARNING 'session_limit is not preloaded, so it limits nobody'
            USING HINT = 'Add session_limit to shared_preload_libraries in postgresql.conf and restart the server.';
    END IF;
END $$;

CREATE SCHEMA session_limit;
COMMENT ON SCHEMA session_limit IS 'limits on concurrent sessions, and their use';

CREATE FUNCTION session_limit.active_sessions(
    OUT pid integer,
    OUT usesysid oid,
    OUT datid oid,
    OUT client_addr inet,
    OUT backend_start timestamptz,
    OUT exempt boolean
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'active_sessions_wrapper';
COMMENT ON FUNCTION session_limit.active_sessions() IS 'sessions that the caller may see; use the view session_limit.sessions';

CREATE FUNCTION session_limit.current_usage(
    OUT source text,
    OUT per text,
    OUT subject text,
    OUT in_use bigint,
    OUT max bigint,
    OUT waiting bigint,
    OUT longest_wait_us bigint,
    OUT rolname text,
    OUT datname text,
    OUT client_addr inet,
    OUT network text,
    OUT enforcement text,
    OUT count text,
    OUT across text,
    OUT elsewhere bigint
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_usage_0_2_wrapper';
COMMENT ON FUNCTION session_limit.current_usage() IS 'limits and their counts that the caller may see; use the view session_limit.usage';

CREATE FUNCTION session_limit.current_waiters(
    OUT pid integer,
    OUT usesysid oid,
    OUT datid oid,
    OUT client_addr inet,
    OUT waitstart timestamptz,
    OUT source text,
    OUT per text,
    OUT count text,
    OUT across text,
    OUT subject text
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_waiters_wrapper';
COMMENT ON FUNCTION session_limit.current_waiters() IS 'waiting logins that the caller may see, and each limit in their way; use the view session_limit.waiters';

CREATE FUNCTION session_limit.recent_events(
    OUT event_time timestamptz,
    OUT event text,
    OUT usename text,
    OUT datname text,
    OUT client_addr inet,
    OUT pid integer,
    OUT detail json
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'recent_events_wrapper';
COMMENT ON FUNCTION session_limit.recent_events() IS 'recent events that the caller may see; use the view session_limit.events';

CREATE FUNCTION session_limit.defined_limits(
    OUT source text,
    OUT per text,
    OUT subject text,
    OUT database text,
    OUT network text,
    OUT max bigint,
    OUT on_excess text,
    OUT max_wait_ms bigint,
    OUT enforcement text,
    OUT unmatched boolean,
    OUT administrators oid[],
    OUT count text,
    OUT across text
) RETURNS SETOF record
LANGUAGE C STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'defined_limits_0_2_wrapper';
COMMENT ON FUNCTION session_limit.defined_limits() IS 'limits that are set and that the caller may see; use the view session_limit.limits';

CREATE FUNCTION session_limit.effective_limits(
    OUT usename text,
    OUT max bigint,
    OUT source text,
    OUT exempt boolean,
    OUT connection_limit integer
) RETURNS SETOF record
LANGUAGE C STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'effective_limits_wrapper';
COMMENT ON FUNCTION session_limit.effective_limits() IS 'the limit of each role that the caller may see; use the view session_limit.role_limits';

CREATE FUNCTION session_limit.explain_login(
    role name,
    database name DEFAULT pg_catalog.current_database(),
    address inet DEFAULT NULL,
    OUT source text,
    OUT per text,
    OUT subject text,
    OUT in_use bigint,
    OUT max bigint,
    OUT fits boolean,
    OUT enforcement text,
    OUT count text,
    OUT across text,
    OUT elsewhere bigint
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'explain_login_0_2_wrapper';
COMMENT ON FUNCTION session_limit.explain_login(name, name, inet) IS
    'each limit that such a login would have to meet now, whether it does, and whether that is enforced (on) or logged (log); without an address: over a Unix-domain socket';

CREATE FUNCTION session_limit.current_stats(
    OUT usesysid oid,
    OUT datid oid,
    OUT others boolean,
    OUT admitted bigint,
    OUT waited bigint,
    OUT wait_us bigint,
    OUT refused bigint,
    OUT last_refused timestamptz,
    OUT replaced bigint,
    OUT would_refuse bigint,
    OUT would_replace bigint,
    OUT peak bigint,
    OUT peak_at timestamptz,
    OUT decisions bigint,
    OUT decision_us bigint,
    OUT stats_reset timestamptz,
    OUT abandoned bigint,
    OUT seats_taken bigint,
    OUT seats_waited bigint,
    OUT seats_refused bigint,
    OUT seats_replaced bigint,
    OUT seats_expired bigint,
    OUT seats_evicted bigint
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_stats_0_2_wrapper';
COMMENT ON FUNCTION session_limit.current_stats() IS 'what has become of logins that the caller may know of; use the view session_limit.stats';

CREATE FUNCTION session_limit.current_limit_stats(
    OUT source text,
    OUT per text,
    OUT count text,
    OUT across text,
    OUT subject text,
    OUT others boolean,
    OUT max bigint,
    OUT enforcement text,
    OUT rolname text,
    OUT datname text,
    OUT client_addr inet,
    OUT network text,
    OUT admitted bigint,
    OUT refused_no_room bigint,
    OUT refused_no_place_to_wait bigint,
    OUT refused_not_replaced bigint,
    OUT refused_unreadable_label bigint,
    OUT last_refused timestamptz,
    OUT replaced bigint,
    OUT would_refuse bigint,
    OUT would_replace bigint,
    OUT swept bigint,
    OUT peak bigint,
    OUT peak_at timestamptz,
    OUT stats_reset timestamptz
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_limit_stats_wrapper';
COMMENT ON FUNCTION session_limit.current_limit_stats() IS 'what the limits that the caller may know of did to logins; use the view session_limit.limit_stats';

CREATE FUNCTION session_limit.current_status(
    OUT library_version text,
    OUT enforcement text,
    OUT worker_pid integer,
    OUT slots_in_use bigint,
    OUT slots bigint,
    OUT waiting bigint,
    OUT stats_lost boolean,
    OUT etcd_reachable boolean
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_status_wrapper';
COMMENT ON FUNCTION session_limit.current_status() IS 'the state of the library, in one row; use the view session_limit.status';

CREATE FUNCTION session_limit.take_seat(
    key text,
    max integer DEFAULT 1,
    ttl interval DEFAULT NULL,
    max_wait interval DEFAULT NULL,
    on_excess text DEFAULT 'refuse'
) RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'take_seat_wrapper';
COMMENT ON FUNCTION session_limit.take_seat(text, integer, interval, interval, text) IS
    'takes one of at most max seats of the key in this database, and returns its UUID: until the session ends, or with a ttl until it is not renewed in time; an error if none is free';

CREATE FUNCTION session_limit.try_take_seat(
    key text,
    max integer DEFAULT 1,
    ttl interval DEFAULT NULL,
    max_wait interval DEFAULT NULL,
    on_excess text DEFAULT 'refuse'
) RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'try_take_seat_wrapper';
COMMENT ON FUNCTION session_limit.try_take_seat(text, integer, interval, interval, text) IS
    'as session_limit.take_seat, but returns null if no seat of the key is free';

CREATE FUNCTION session_limit.renew_seat(seat uuid, ttl interval DEFAULT NULL) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'renew_seat_wrapper';
COMMENT ON FUNCTION session_limit.renew_seat(uuid, interval) IS
    'lets a seat with a ttl last for that long, or as long as last time, from now on; returns whether the seat is held still';

CREATE FUNCTION session_limit.release_seat(seat uuid) RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'release_seat_wrapper';
COMMENT ON FUNCTION session_limit.release_seat(uuid) IS 'gives a seat back; returns whether it was held still';

CREATE FUNCTION session_limit.evict_seats(key text) RETURNS integer
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'evict_seats_wrapper';
COMMENT ON FUNCTION session_limit.evict_seats(text) IS
    'ends all seats of the key in this database, whoever holds them; returns how many';

CREATE FUNCTION session_limit.current_seats(
    OUT key text,
    OUT usesysid oid,
    OUT datid oid,
    OUT pid integer,
    OUT client_addr inet,
    OUT taken_at timestamptz,
    OUT expires_at timestamptz,
    OUT max integer,
    OUT seat uuid
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_seats_wrapper';
COMMENT ON FUNCTION session_limit.current_seats() IS 'seats that are held and that the caller may see; use the view session_limit.seats';

CREATE FUNCTION session_limit.current_servers(
    OUT name text,
    OUT since timestamptz,
    OUT last_seen timestamptz,
    OUT places bigint,
    OUT this boolean
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_servers_wrapper';
COMMENT ON FUNCTION session_limit.current_servers() IS 'servers that count together; use the view session_limit.servers';

CREATE FUNCTION session_limit.reset_stats() RETURNS void
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'reset_stats_wrapper';
COMMENT ON FUNCTION session_limit.reset_stats() IS 'discards all of session_limit.stats and limit_stats, and ends status.stats_lost; for superusers, unless it is granted to others';

CREATE FUNCTION session_limit.edited_label(role name, database name, a_limit text, keep boolean) RETURNS text
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'edited_label_wrapper';
COMMENT ON FUNCTION session_limit.edited_label(name, name, text, boolean) IS
    'the label with a limit set or removed; use session_limit.set_limit and session_limit.clear_limit';

CREATE FUNCTION session_limit.edit_label(role name, database name, a_limit jsonb, keep boolean) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    label text := session_limit.edited_label(role, database, jsonb_strip_nulls(a_limit)::text, keep);
BEGIN
    IF role IS NOT NULL THEN
        EXECUTE format('SECURITY LABEL FOR session_limit ON ROLE %I IS %L', role, label);
    ELSE
        EXECUTE format('SECURITY LABEL FOR session_limit ON DATABASE %I IS %L', database, label);
    END IF;
    RETURN label;
END
$$;
COMMENT ON FUNCTION session_limit.edit_label(name, name, jsonb, boolean) IS
    'sets or removes a limit of a label; use session_limit.set_limit and session_limit.clear_limit';

-- A database is the one that the limit is about if there is a role, else the one whose label is meant. A list is separated
-- by commas in a text, and an array in a label.
CREATE FUNCTION session_limit.set_limit(
    max integer,
    role name DEFAULT NULL,
    database name DEFAULT NULL,
    per text DEFAULT NULL,
    network cidr DEFAULT NULL,
    on_excess text DEFAULT NULL,
    max_wait interval DEFAULT NULL,
    enforcement text DEFAULT NULL,
    count text DEFAULT NULL,
    across text DEFAULT NULL
) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT session_limit.edit_label(role, database, jsonb_build_object(
    'max', max,
    'per', CASE WHEN per LIKE '%,%' THEN to_jsonb(regexp_split_to_array(btrim(per), ' *, *')) ELSE to_jsonb(per) END,
    'database', CASE WHEN role IS NOT NULL THEN database END,
    'network', network,
    'on_excess', on_excess,
    'max_wait', (extract(epoch FROM max_wait) * 1000)::bigint,
    'enforcement', enforcement,
    'count', count,
    'across', across), true)
$$;
COMMENT ON FUNCTION session_limit.set_limit(integer, name, name, text, cidr, text, interval, text, text, text) IS
    'sets one limit of the label of a role or database, or changes that with the same per, database, network, count and across; returns the label';

CREATE FUNCTION session_limit.clear_limit(
    role name DEFAULT NULL,
    database name DEFAULT NULL,
    per text DEFAULT NULL,
    network cidr DEFAULT NULL,
    count text DEFAULT NULL,
    across text DEFAULT NULL
) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT session_limit.edit_label(role, database, jsonb_build_object(
    'max', -1,
    'per', CASE WHEN per LIKE '%,%' THEN to_jsonb(regexp_split_to_array(btrim(per), ' *, *')) ELSE to_jsonb(per) END,
    'database', CASE WHEN role IS NOT NULL THEN database END,
    'network', network,
    'count', count,
    'across', across), false)
$$;
COMMENT ON FUNCTION session_limit.clear_limit(name, name, text, cidr, text, text) IS
    'removes one limit from the label of a role or database; returns the label that is left, null if none is';

CREATE VIEW session_limit.sessions AS
SELECT s.pid, r.rolname AS usename, d.datname, s.client_addr, a.application_name, s.backend_start, s.exempt
FROM session_limit.active_sessions() s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.usesysid
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.datid
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.pid;
COMMENT ON VIEW session_limit.sessions IS 'the sessions, WAL senders among them, one row each';
COMMENT ON COLUMN session_limit.sessions.pid IS 'process ID of the backend';
COMMENT ON COLUMN session_limit.sessions.usename IS 'role that logged in; null if it was dropped since';
COMMENT ON COLUMN session_limit.sessions.datname IS 'database; null for a WAL sender without one';
COMMENT ON COLUMN session_limit.sessions.client_addr IS 'address of the client; null over a Unix-domain socket';
COMMENT ON COLUMN session_limit.sessions.application_name IS 'application_name of the session';
COMMENT ON COLUMN session_limit.sessions.backend_start IS 'when the backend was started';
COMMENT ON COLUMN session_limit.sessions.exempt IS 'whether the session was admitted without regard to limits';

CREATE VIEW session_limit.limits AS
SELECT
    l.source,
    l.per,
    l.subject,
    l.database,
    l.network::cidr AS network,
    l.max,
    l.on_excess,
    l.max_wait_ms * interval '1 ms' AS max_wait,
    l.enforcement,
    l.unmatched,
    (SELECT array_agg(r.rolname ORDER BY r.rolname) FROM pg_catalog.pg_roles r WHERE r.oid = ANY (l.administrators)) AS administrators,
    l.count,
    l.across
FROM session_limit.defined_limits() l;
COMMENT ON VIEW session_limit.limits IS 'every limit that is set';
COMMENT ON COLUMN session_limit.limits.source IS 'where the limit is set';
COMMENT ON COLUMN session_limit.limits.per IS 'what one count is kept for: role, address, group, database or cluster, or each combination of a list of these';
COMMENT ON COLUMN session_limit.limits.subject IS 'role, group or database on which it is set; null for the whole cluster';
COMMENT ON COLUMN session_limit.limits.database IS 'only sessions in this database count; null: in any';
COMMENT ON COLUMN session_limit.limits.network IS 'only sessions from these addresses count; null: from anywhere';
COMMENT ON COLUMN session_limit.limits.max IS 'what it counts that the limit allows; -1: any number, also where another limit would apply';
COMMENT ON COLUMN session_limit.limits.on_excess IS 'what happens to a login over the limit, once it has waited';
COMMENT ON COLUMN session_limit.limits.max_wait IS 'how long a login over the limit waits for room';
COMMENT ON COLUMN session_limit.limits.enforcement IS 'on; log: only logged; off: by the setting, not looked at';
COMMENT ON COLUMN session_limit.limits.unmatched IS 'whether it can cover no session now: its database does not exist, or its role can, or cannot, log in any more';
COMMENT ON COLUMN session_limit.limits.administrators IS
    'of the label of a group, the roles that can make anyone a member of it, superusers aside; null if there are none';
COMMENT ON COLUMN session_limit.limits.count IS 'what the limit counts: sessions, different roles, or different client addresses';
COMMENT ON COLUMN session_limit.limits.across IS 'server: the limit counts on this server; servers: on all servers that count together';

CREATE VIEW session_limit.usage AS
SELECT
    u.source,
    u.per,
    u.subject,
    u.in_use,
    u.max,
    CASE
        WHEN u.max < u.in_use + coalesce(u.elsewhere, 0) THEN 0
        WHEN u.across = 'servers' AND u.elsewhere IS NULL
            AND (SELECT s.etcd_reachable IS NOT NULL FROM session_limit.current_status() s) THEN NULL
        ELSE u.max - u.in_use - coalesce(u.elsewhere, 0)
    END AS free,
    u.waiting,
    u.longest_wait_us * interval '1 microsecond' AS longest_wait,
    u.rolname,
    u.datname,
    u.client_addr,
    u.network::cidr AS network,
    u.enforcement,
    u.count,
    u.across,
    u.elsewhere
FROM session_limit.current_usage() u;
COMMENT ON VIEW session_limit.usage IS 'the limits that have a session or a waiting login, one row for each count';
COMMENT ON COLUMN session_limit.usage.source IS 'where the limit is set';
COMMENT ON COLUMN session_limit.usage.per IS 'what the count is kept for: role, address, group, database or cluster, or a combination of a list of these';
COMMENT ON COLUMN session_limit.usage.subject IS 'role, group, database, address that is counted; by its OID if it was dropped since; null for the whole cluster';
COMMENT ON COLUMN session_limit.usage.in_use IS 'how many the limit counts; null if the caller may not see where they come from';
COMMENT ON COLUMN session_limit.usage.max IS 'how many the limit allows';
COMMENT ON COLUMN session_limit.usage.free IS 'how many more the limit has room for; null as in_use is, and if what other servers count is not known';
COMMENT ON COLUMN session_limit.usage.waiting IS 'logins that wait for room under the limit; null if these can be of roles that the caller may not see';
COMMENT ON COLUMN session_limit.usage.longest_wait IS 'how long the one that waits longest has waited; null if there is none, and as waiting is';
COMMENT ON COLUMN session_limit.usage.rolname IS 'of the subject, the role or group; by its OID if it was dropped since; null: any';
COMMENT ON COLUMN session_limit.usage.datname IS 'of the subject, the database; by its OID if it was dropped since; null: any';
COMMENT ON COLUMN session_limit.usage.client_addr IS 'of the subject, the address, of a limit per address; else null';
COMMENT ON COLUMN session_limit.usage.network IS 'of the subject, the network, of any other limit; null: from anywhere';
COMMENT ON COLUMN session_limit.usage.enforcement IS 'on; log: the limit is only tried out; off: it is not looked at';
COMMENT ON COLUMN session_limit.usage.count IS 'what is counted: sessions, roles or addresses';
COMMENT ON COLUMN session_limit.usage.across IS 'server: the limit counts on this server; servers: on all servers that count together';
COMMENT ON COLUMN session_limit.usage.elsewhere IS 'how many the limit counted on other servers when this one last looked; null if it counts on this server alone, if that is not known, and as in_use is';

CREATE VIEW session_limit.events AS
SELECT e.event_time, e.event, e.usename, e.datname, e.client_addr, e.pid, e.detail
FROM session_limit.recent_events() e;
COMMENT ON VIEW session_limit.events IS 'the most recent decisions on logins, one row each, since the server was started';
COMMENT ON COLUMN session_limit.events.event_time IS 'when it was decided';
COMMENT ON COLUMN session_limit.events.event IS
    'admitted, waited, refused, replaced, would_refuse, would_replace, abandoned, swept, reclaimed or concurrent_addresses; of seats seat_taken, seat_waited, seat_refused, seat_replaced, seat_expired or seat_evicted';
COMMENT ON COLUMN session_limit.events.usename IS 'role that logged in, as it was called then; null if the place of a vanished process was reclaimed';
COMMENT ON COLUMN session_limit.events.datname IS 'database, as it was called then; null for a WAL sender without one';
COMMENT ON COLUMN session_limit.events.client_addr IS 'address of the client; null over a Unix-domain socket';
COMMENT ON COLUMN session_limit.events.pid IS 'process ID of the backend; null if the event is about none';
COMMENT ON COLUMN session_limit.events.detail IS 'what the event has besides';

CREATE VIEW session_limit.role_limits AS
SELECT r.usename, r.max, r.source, r.exempt, r.connection_limit, r.connection_limit = -1 AS stig_finding
FROM session_limit.effective_limits() r;
COMMENT ON VIEW session_limit.role_limits IS 'for each role that can log in, how many sessions it may have in all';
COMMENT ON COLUMN session_limit.role_limits.usename IS 'role';
COMMENT ON COLUMN session_limit.role_limits.max IS 'its limit, whichever its database and client address; -1: none, or exempt, but for connection_limit, which the server enforces';
COMMENT ON COLUMN session_limit.role_limits.source IS 'where that is set';
COMMENT ON COLUMN session_limit.role_limits.exempt IS 'whether it is never refused, by a label or as a superuser';
COMMENT ON COLUMN session_limit.role_limits.connection_limit IS 'its CONNECTION LIMIT (rolconnlimit); -1: none';
COMMENT ON COLUMN session_limit.role_limits.stig_finding IS 'whether the check of the PostgreSQL STIG would find it, which takes any role without a CONNECTION LIMIT for unlimited';

CREATE VIEW session_limit.stats AS
SELECT
    r.rolname AS usename,
    d.datname,
    s.others,
    s.admitted,
    s.waited,
    s.wait_us * interval '1 microsecond' AS wait_time,
    s.refused,
    s.last_refused,
    s.replaced,
    s.would_refuse,
    s.would_replace,
    s.peak,
    s.peak_at,
    s.decisions,
    s.decision_us,
    s.stats_reset,
    s.abandoned,
    s.usesysid,
    nullif(s.datid, 0::oid) AS datid,
    s.seats_taken,
    s.seats_waited,
    s.seats_refused,
    s.seats_replaced,
    s.seats_expired,
    s.seats_evicted
FROM session_limit.current_stats() s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.usesysid
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.datid;
COMMENT ON VIEW session_limit.stats IS 'what has become of logins, one row for each role and database';
COMMENT ON COLUMN session_limit.stats.usename IS 'role that logged in; null if it was dropped since';
COMMENT ON COLUMN session_limit.stats.datname IS 'database; null for WAL senders without one, and if it was dropped since';
COMMENT ON COLUMN session_limit.stats.others IS 'whether the row is about all roles and databases for which there is no room, and dropped ones that made room';
COMMENT ON COLUMN session_limit.stats.admitted IS 'logins that were admitted';
COMMENT ON COLUMN session_limit.stats.waited IS 'logins that waited for room, whether they were admitted then or refused';
COMMENT ON COLUMN session_limit.stats.wait_time IS 'how long these waited, in all';
COMMENT ON COLUMN session_limit.stats.refused IS 'logins that were refused for the sake of a limit';
COMMENT ON COLUMN session_limit.stats.last_refused IS 'when the last of these was; null if there is none';
COMMENT ON COLUMN session_limit.stats.replaced IS 'logins that were admitted in place of older sessions';
COMMENT ON COLUMN session_limit.stats.would_refuse IS 'logins that were admitted and would have been refused if the limit were enforced';
COMMENT ON COLUMN session_limit.stats.would_replace IS 'logins that were admitted and would have replaced older sessions if the limit were enforced';
COMMENT ON COLUMN session_limit.stats.abandoned IS 'logins whose client closed the connection while they waited';
COMMENT ON COLUMN session_limit.stats.usesysid IS 'OID of the role; with datid and others, the key of the row';
COMMENT ON COLUMN session_limit.stats.datid IS 'OID of the database; null for WAL senders without one';
COMMENT ON COLUMN session_limit.stats.seats_taken IS 'seats that were taken';
COMMENT ON COLUMN session_limit.stats.seats_waited IS 'calls for a seat that waited, whether they got one then or were refused';
COMMENT ON COLUMN session_limit.stats.seats_refused IS 'calls for a seat that were refused because as many as they allow are held';
COMMENT ON COLUMN session_limit.stats.seats_replaced IS 'seats that ended for newer ones';
COMMENT ON COLUMN session_limit.stats.seats_expired IS 'seats that ended because they were not renewed in time';
COMMENT ON COLUMN session_limit.stats.seats_evicted IS 'seats that an administrator ended, or that were of a dropped database';
COMMENT ON COLUMN session_limit.stats.peak IS 'the most sessions at once';
COMMENT ON COLUMN session_limit.stats.peak_at IS 'when there first were so many; null if there were none';
COMMENT ON COLUMN session_limit.stats.decisions IS 'logins that were decided: admitted, refused and abandoned';
COMMENT ON COLUMN session_limit.stats.decision_us IS 'microseconds that these spent being decided, in all, without waiting';
COMMENT ON COLUMN session_limit.stats.stats_reset IS 'since when logins are counted';

CREATE VIEW session_limit.servers AS
SELECT s.name, s.since, s.last_seen, s.places, s.this
FROM session_limit.current_servers() s;
COMMENT ON VIEW session_limit.servers IS 'the servers that count limits across servers together, one row each, as this one last saw them';
COMMENT ON COLUMN session_limit.servers.name IS 'the setting session_limit.server_name there, else cluster_name, or host name and port if another has the same name';
COMMENT ON COLUMN session_limit.servers.since IS 'since when it has been one of them, by its own clock';
COMMENT ON COLUMN session_limit.servers.last_seen IS 'when its last sign of life was seen here';
COMMENT ON COLUMN session_limit.servers.places IS 'how many places it held then, of all limits together; null if the caller may not see all sessions';
COMMENT ON COLUMN session_limit.servers.this IS 'whether it is this server';

CREATE VIEW session_limit.seats AS
SELECT s.key, r.rolname AS usename, d.datname, s.pid, s.client_addr, s.taken_at, s.expires_at, s.max, s.seat
FROM session_limit.current_seats() s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.usesysid
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.datid;
COMMENT ON VIEW session_limit.seats IS 'the seats that are held, one row each';
COMMENT ON COLUMN session_limit.seats.key IS 'what the seat is one of; a text of another encoding has escapes';
COMMENT ON COLUMN session_limit.seats.usename IS 'role whose privileges the call had that took it; null if it was dropped since';
COMMENT ON COLUMN session_limit.seats.datname IS 'database in which the key is counted; null if it was dropped since';
COMMENT ON COLUMN session_limit.seats.pid IS 'process ID of the backend that took it, which may be gone if the seat has a ttl';
COMMENT ON COLUMN session_limit.seats.client_addr IS 'address of the client that took it, such as a pooler; null over a Unix-domain socket';
COMMENT ON COLUMN session_limit.seats.taken_at IS 'when it was taken';
COMMENT ON COLUMN session_limit.seats.expires_at IS 'when it ends unless it is renewed; null: when its session ends';
COMMENT ON COLUMN session_limit.seats.max IS 'how many seats of the key the call allowed';
COMMENT ON COLUMN session_limit.seats.seat IS 'its name, for the session that took it; else null';

CREATE VIEW session_limit.waiters AS
SELECT w.pid, r.rolname AS usename, d.datname, w.client_addr, w.waitstart, w.limits
FROM (
    SELECT
        c.pid,
        c.usesysid,
        c.datid,
        c.client_addr,
        c.waitstart,
        json_agg(json_build_object('source', c.source, 'per', c.per, 'count', c.count, 'across', c.across, 'subject', c.subject))
            FILTER (WHERE c.source IS NOT NULL) AS limits
    FROM session_limit.current_waiters() c
    GROUP BY c.pid, c.usesysid, c.datid, c.client_addr, c.waitstart
) w
LEFT JOIN pg_catalog.pg_roles r ON r.oid = w.usesysid
LEFT JOIN pg_catalog.pg_database d ON d.oid = w.datid;
COMMENT ON VIEW session_limit.waiters IS 'the logins that wait for room, one row each';
COMMENT ON COLUMN session_limit.waiters.pid IS 'process ID of the backend';
COMMENT ON COLUMN session_limit.waiters.usename IS 'role that logs in; null if it was dropped since';
COMMENT ON COLUMN session_limit.waiters.datname IS 'database; null if it was dropped since';
COMMENT ON COLUMN session_limit.waiters.client_addr IS 'address of the client; null over a Unix-domain socket';
COMMENT ON COLUMN session_limit.waiters.waitstart IS 'when its login arrived: since then it waits';
COMMENT ON COLUMN session_limit.waiters.limits IS 'the limits without room for it, by the columns of session_limit.usage; null if it is about to go in';

CREATE VIEW session_limit.limit_stats AS
SELECT
    l.source,
    l.per,
    l.count,
    l.across,
    l.subject,
    l.others,
    l.max,
    l.enforcement,
    l.rolname,
    l.datname,
    l.client_addr,
    l.network::cidr AS network,
    l.admitted,
    l.refused_no_room,
    l.refused_no_place_to_wait,
    l.refused_not_replaced,
    l.refused_unreadable_label,
    l.last_refused,
    l.replaced,
    l.would_refuse,
    l.would_replace,
    l.swept,
    l.peak,
    l.peak_at,
    l.stats_reset
FROM session_limit.current_limit_stats() l;
COMMENT ON VIEW session_limit.limit_stats IS 'what each limit did to logins and sessions, and the most sessions under it';
COMMENT ON COLUMN session_limit.limit_stats.source IS 'where the limit is set; null in the row of the others';
COMMENT ON COLUMN session_limit.limit_stats.per IS 'what the limit counts separately; null if the label there could not be read';
COMMENT ON COLUMN session_limit.limit_stats.count IS 'what is counted: sessions, roles or addresses; null as per is';
COMMENT ON COLUMN session_limit.limit_stats.across IS 'server: the limit counts on this server; servers: on all servers that count together; null as per is';
COMMENT ON COLUMN session_limit.limit_stats.subject IS 'the sessions that it counts; null: those of the whole cluster';
COMMENT ON COLUMN session_limit.limit_stats.others IS 'whether the row is the sum of those that were removed to make room';
COMMENT ON COLUMN session_limit.limit_stats.max IS 'how many sessions it allows, as of the last time that something was counted here';
COMMENT ON COLUMN session_limit.limit_stats.enforcement IS 'on; log: the limit is only tried out, which is counted apart';
COMMENT ON COLUMN session_limit.limit_stats.rolname IS 'of the subject, the role or group; by its OID if it was dropped since; null: any';
COMMENT ON COLUMN session_limit.limit_stats.datname IS 'of the subject, the database; by its OID if it was dropped since; null: any';
COMMENT ON COLUMN session_limit.limit_stats.client_addr IS 'of the subject, the address, of a limit per address; else null';
COMMENT ON COLUMN session_limit.limit_stats.network IS 'of the subject, the network, of any other limit; null: from anywhere';
COMMENT ON COLUMN session_limit.limit_stats.admitted IS 'logins that it covers and that were admitted, for whatever reason';
COMMENT ON COLUMN session_limit.limit_stats.refused_no_room IS 'logins that it refused because there was no room, now or after they had waited';
COMMENT ON COLUMN session_limit.limit_stats.refused_no_place_to_wait IS 'logins that it refused, and would have let wait, if there had been a place in the queue and a connection to wait in';
COMMENT ON COLUMN session_limit.limit_stats.refused_not_replaced IS 'logins that it refused because a session that was to end for them did not';
COMMENT ON COLUMN session_limit.limit_stats.refused_unreadable_label IS 'logins that were refused because the label there cannot be read';
COMMENT ON COLUMN session_limit.limit_stats.last_refused IS 'when it last refused a login';
COMMENT ON COLUMN session_limit.limit_stats.replaced IS 'admitted logins for which older sessions ended under it';
COMMENT ON COLUMN session_limit.limit_stats.would_refuse IS 'admitted logins that it would have refused, if it were not only tried out';
COMMENT ON COLUMN session_limit.limit_stats.would_replace IS 'admitted logins for which older sessions would have ended, if it were not only tried out';
COMMENT ON COLUMN session_limit.limit_stats.swept IS 'sessions that were told to end because it was lowered or set';
COMMENT ON COLUMN session_limit.limit_stats.peak IS 'the most that it counted at once, exempt sessions among them, as of each login that it holds';
COMMENT ON COLUMN session_limit.limit_stats.peak_at IS 'when there first were so many';
COMMENT ON COLUMN session_limit.limit_stats.stats_reset IS 'since when all this is counted';

CREATE VIEW session_limit.status AS
SELECT
    s.library_version,
    (SELECT e.extversion FROM pg_catalog.pg_extension e WHERE e.extname = 'session_limit') AS extension_version,
    s.enforcement,
    s.worker_pid,
    s.slots_in_use,
    s.slots,
    s.waiting,
    s.stats_lost,
    s.etcd_reachable
FROM session_limit.current_status() s;
COMMENT ON VIEW session_limit.status IS 'the state of session_limit on this server, in one row';
COMMENT ON COLUMN session_limit.status.library_version IS 'version of the library that the server has loaded';
COMMENT ON COLUMN session_limit.status.extension_version IS 'version of the SQL objects in this database';
COMMENT ON COLUMN session_limit.status.enforcement IS 'the setting session_limit.enforcement: on; log: nobody is refused; off: nothing is decided';
COMMENT ON COLUMN session_limit.status.worker_pid IS 'process ID of the background worker; null if there is none, so that nothing is swept';
COMMENT ON COLUMN session_limit.status.slots_in_use IS 'sessions that are counted, and WAL senders, exempt ones among them';
COMMENT ON COLUMN session_limit.status.slots IS 'the most that there can be: as many as the server can have backends';
COMMENT ON COLUMN session_limit.status.waiting IS 'logins that wait for room; null if the caller may not see who waits';
COMMENT ON COLUMN session_limit.status.stats_lost IS
    'whether statistics from before session_limit.stats.stats_reset were lost, by a crash, an immediate shutdown or an unreadable file; false again after reset_stats()';
COMMENT ON COLUMN session_limit.status.etcd_reachable IS 'whether limits across servers are counted with the other servers now; null without session_limit.etcd_endpoints';

REVOKE ALL ON SCHEMA session_limit FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA session_limit FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA session_limit FROM PUBLIC;

-- Everyone may look: the functions leave out what the caller may not see. And everyone may try to set a limit:
-- SECURITY LABEL refuses whoever may not.
GRANT USAGE ON SCHEMA session_limit TO PUBLIC;
GRANT SELECT ON ALL TABLES IN SCHEMA session_limit TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA session_limit TO PUBLIC;
-- What one discards others may want to see.
REVOKE EXECUTE ON FUNCTION session_limit.reset_stats() FROM PUBLIC;
-- Whoever takes seats takes them from others.
REVOKE EXECUTE ON FUNCTION
    session_limit.take_seat(text, integer, interval, interval, text),
    session_limit.try_take_seat(text, integer, interval, interval, text),
    session_limit.renew_seat(uuid, interval),
    session_limit.release_seat(uuid),
    session_limit.evict_seats(text)
FROM PUBLIC;
