use pg_test::cluster::Cluster;
fn main() {
    let servers = pg_test::server::servers();
    let c = Cluster::start(&servers[0], &[("session_limit.max_sessions_per_role", "1")]);
    c.sql(&["CREATE ROLE alice LOGIN", "CREATE EXTENSION session_limit"]);
    let _a = c.login_of("alice").login();
    println!("{}", c.psql("alice", "select 1"));
    println!("{}", c.psql("postgres", "select * from session_limit.sessions"));
    println!("{}", c.psql("postgres", "select * from session_limit.usage"));
    println!("{}", c.log());
}
