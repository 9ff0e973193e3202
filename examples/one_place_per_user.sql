-- One place per user: every role that has no limit of its own has one session, and whoever logs in again takes it over.
ALTER SYSTEM SET session_limit.max_sessions_per_role = 1;
ALTER SYSTEM SET session_limit.on_excess = 'replace_oldest';
SELECT pg_reload_conf();

-- An application is not one person: its pool has 20 sessions, and none ends for another.
SECURITY LABEL FOR session_limit ON ROLE app IS '{"max": 20, "on_excess": "refuse"}';
