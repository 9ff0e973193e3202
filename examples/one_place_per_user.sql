-- One place per user: whoever logs in again takes over the place of the session before.

-- If a statement fails, psql runs none of those after it.
\set ON_ERROR_STOP on

-- An application is not one person: its pool has 20 sessions, and none ends for another. So it comes first.
-- Replace app by the name of its role.
SECURITY LABEL FOR session_limit ON ROLE app IS '{"max": 20, "on_excess": "refuse"}';

-- Every role that has no limit of its own has one session.
ALTER SYSTEM SET session_limit.max_sessions_per_role = 1;
ALTER SYSTEM SET session_limit.on_excess = 'replace_oldest';
SELECT pg_reload_conf();
