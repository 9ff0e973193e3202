-- Five licence seats for all who use the product, two of them at most for one person.
CREATE ROLE crm_users NOLOGIN;
GRANT crm_users TO alice, bob, carol;
SECURITY LABEL FOR session_limit ON ROLE crm_users IS
  '{"limits": [{"max": 5, "per": "group"}, {"max": 2, "per": "role"}]}';
