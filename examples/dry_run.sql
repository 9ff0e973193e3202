-- Try out a limit of one session for alice: nobody is refused, and nobody's session ends.
ALTER SYSTEM SET session_limit.enforcement = 'log';
SELECT pg_reload_conf();
SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1}';

-- Which limits would a login of hers meet now, and would it fit?
SELECT * FROM session_limit.explain_login('alice');

-- Some days later: who would have been refused, or would have ended a session, and when?
SELECT usename, datname, would_refuse, would_replace FROM session_limit.stats WHERE would_refuse + would_replace > 0;
SELECT event_time, event, usename, client_addr, detail FROM session_limit.events WHERE event LIKE 'would%';
