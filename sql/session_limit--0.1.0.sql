-- session_limit 0.1.0. The library enforces limits without any of this; these objects only show them.

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
    OUT subject oid,
    OUT in_use bigint,
    OUT max bigint,
    OUT waiting bigint
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_usage_wrapper';
COMMENT ON FUNCTION session_limit.current_usage() IS 'limits and their counts that the caller may see; use the view session_limit.usage';

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

CREATE VIEW session_limit.usage AS
SELECT
    CASE u.source WHEN 'CONNECTION LIMIT' THEN u.source || ' of ' || u.per || ' ' || s.name ELSE u.source END AS source,
    u.per,
    s.name AS subject,
    u.in_use,
    u.max,
    greatest(u.max - u.in_use, 0) AS free,
    u.waiting
FROM session_limit.current_usage() u
CROSS JOIN LATERAL (
    SELECT coalesce(
        CASE u.per
            WHEN 'role' THEN (SELECT r.rolname::text FROM pg_catalog.pg_roles r WHERE r.oid = u.subject)
            WHEN 'database' THEN (SELECT d.datname::text FROM pg_catalog.pg_database d WHERE d.oid = u.subject)
        END,
        u.subject::text) AS name
) s;
COMMENT ON VIEW session_limit.usage IS 'the limits that have a session or a waiting login, one row for each count';
COMMENT ON COLUMN session_limit.usage.source IS 'where the limit is set';
COMMENT ON COLUMN session_limit.usage.per IS 'what the count is kept for: role or database';
COMMENT ON COLUMN session_limit.usage.subject IS 'name of that role or database; its OID if it was dropped since';
COMMENT ON COLUMN session_limit.usage.in_use IS 'sessions that the limit counts';
COMMENT ON COLUMN session_limit.usage.max IS 'sessions that the limit allows';
COMMENT ON COLUMN session_limit.usage.free IS 'sessions that the limit has room for';
COMMENT ON COLUMN session_limit.usage.waiting IS 'logins that wait, of those that the limit would count';

REVOKE ALL ON SCHEMA session_limit FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA session_limit FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA session_limit FROM PUBLIC;

-- Everyone may look: the functions leave out what the caller may not see.
GRANT USAGE ON SCHEMA session_limit TO PUBLIC;
GRANT SELECT ON session_limit.sessions, session_limit.usage TO PUBLIC;
GRANT EXECUTE ON FUNCTION session_limit.active_sessions(), session_limit.current_usage() TO PUBLIC;
