-- What 0.2.0 adds to 0.1.0. A function whose columns change is made anew, under a new symbol of the library: the library
-- that is still in memory does not have it, and says so. Views grow at their end, so that what uses them stays.

ALTER FUNCTION session_limit.defined_limits() RENAME TO defined_limits_0_1;
ALTER FUNCTION session_limit.current_stats() RENAME TO current_stats_0_1;

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
    OUT administrators oid[]
) RETURNS SETOF record
LANGUAGE C STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'defined_limits_0_2_wrapper';
COMMENT ON FUNCTION session_limit.defined_limits() IS 'limits that are set and that the caller may see; use the view session_limit.limits';

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
    OUT abandoned bigint
) RETURNS SETOF record
LANGUAGE C VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'current_stats_0_2_wrapper';
COMMENT ON FUNCTION session_limit.current_stats() IS 'what has become of logins that the caller may know of; use the view session_limit.stats';

GRANT EXECUTE ON FUNCTION session_limit.defined_limits(), session_limit.current_stats() TO PUBLIC;

CREATE OR REPLACE VIEW session_limit.limits AS
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
    (SELECT array_agg(r.rolname ORDER BY r.rolname) FROM pg_catalog.pg_roles r WHERE r.oid = ANY (l.administrators)) AS administrators
FROM session_limit.defined_limits() l;

CREATE OR REPLACE VIEW session_limit.usage AS
SELECT
    u.source,
    u.per,
    u.subject,
    u.in_use,
    u.max,
    CASE WHEN u.max < u.in_use THEN 0 ELSE u.max - u.in_use END AS free,
    u.waiting
FROM session_limit.current_usage() u;

CREATE OR REPLACE VIEW session_limit.stats AS
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
    s.abandoned
FROM session_limit.current_stats() s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.usesysid
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.datid;

DROP FUNCTION session_limit.defined_limits_0_1();
DROP FUNCTION session_limit.current_stats_0_1();

COMMENT ON COLUMN session_limit.limits.administrators IS
    'of the label of a group, the roles that can make anyone a member of it, superusers aside; null if there are none';
COMMENT ON COLUMN session_limit.usage.in_use IS 'sessions that the limit counts; null if the caller may not see where they come from';
COMMENT ON COLUMN session_limit.usage.free IS 'sessions that the limit has room for; null as in_use is';
COMMENT ON COLUMN session_limit.usage.waiting IS
    'logins that wait, of those that the limit would count; null if these can be of roles that the caller may not see';
COMMENT ON COLUMN session_limit.stats.abandoned IS 'logins whose client closed the connection while they waited';
COMMENT ON COLUMN session_limit.stats.decisions IS 'logins that were decided: admitted, refused and abandoned';
COMMENT ON COLUMN session_limit.events.event IS
    'admitted, waited, refused, replaced, would_refuse, would_replace, abandoned, swept, reclaimed or concurrent_addresses';
