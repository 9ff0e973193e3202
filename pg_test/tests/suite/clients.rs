//! Ways to log in: libpq with and without TLS, authentication methods, names of hosts; and that
//! nothing is left behind in a session by what the hook read.

use crate::scene::refused;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use pg_test::{packages, place, run, wait_for};
use std::fs;
use std::process::Command;

tests![
    a_refusal_over_tls_is_one_login,
    scram_and_trust,
    peer,
    addresses_stay_addresses,
    each_client_has_its_address,
    a_login_poisons_nothing,
];

/// libpq takes an error before AuthenticationOk for a failure of TLS, and with `sslmode=prefer`
/// logs in again without.
fn a_refusal_over_tls_is_one_login(server: &Server) {
    let settings = [
        ("session_limit.max_sessions_per_role", "1"),
        ("log_connections", "on"),
    ];
    let mut cluster = Cluster::start(server, &settings);
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    let certificate =
        rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    let pem = certificate.cert.pem() + &certificate.signing_key.serialize_pem();
    // Not every server here has TLS of its own: before the others stands an endpoint that has.
    let endpoint = if server.config("--configure").contains("openssl") {
        cluster.write_secret("tls.pem", &pem);
        let files = "ssl = on\nssl_cert_file = 'tls.pem'\nssl_key_file = 'tls.pem'\n";
        cluster.append("postgresql.conf", files);
        cluster.stop(Stop::Fast);
        cluster.start_again();
        None
    } else {
        let file = cluster.dir.join("tls.pem");
        fs::write(&file, pem).expect("write the certificate");
        Some(file)
    };
    let login = || {
        let script = place::checkout().join("pg_test/tests/tls_login.py");
        let mut python = Command::new("python3");
        python
            .arg(script)
            .arg(cluster.port.to_string())
            .args(&endpoint);
        run(python.env("PYTHONPATH", packages::libpq_with_tls()))
    };
    // Who connects without TLS after a refusal connects a second time.
    let connections = || {
        cluster
            .log()
            .matches("connection received: host=127.0.0.1")
            .count()
    };

    assert_eq!(login(), "admitted over TLS\n");
    assert_eq!(connections(), 1);
    // That session may still be leaving.
    let _first = wait_for("room", || cluster.login_of("alice").login().ok());
    let refused = login();
    assert!(
        refused.contains(r#"FATAL:  too many connections for role "alice""#),
        "{refused}"
    );
    assert!(
        refused.contains("DETAIL:  The limit is 1 session"),
        "{refused}"
    );
    assert_eq!(connections(), 2);
}

fn scram_and_trust(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&["CREATE ROLE alice LOGIN PASSWORD 'right' CONNECTION LIMIT 2"]);
    cluster.require_passwords();
    let scram = || cluster.psql_with_password("alice", "right", "SELECT 'in as ' || current_user");
    let _first = cluster.login_of("alice").login().expect("the first");
    assert_eq!(scram(), "in as alice\n");
    let _second = wait_for("psql to be gone", || cluster.login_of("alice").login().ok());
    assert!(scram().contains(r#"too many connections for role "alice""#));
}

fn peer(server: &Server) {
    let cluster = Cluster::start(
        server,
        &[
            ("session_limit.max_sessions_per_role", "0"),
            ("session_limit.max_wait", "0"),
        ],
    );
    let mut id = Command::new("id");
    let user = run(place::as_server_user(&mut id).arg("-un"));
    cluster.sql(&["CREATE ROLE alice LOGIN"]);
    cluster.write(
        "pg_ident.conf",
        &format!(
            "bench {} alice\nbench {} postgres\n",
            user.trim(),
            user.trim()
        ),
    );
    cluster.write(
        "pg_hba.conf",
        "local all all peer map=bench\nhost all postgres all trust\n",
    );
    cluster.superuser().query("SELECT pg_reload_conf()");
    wait_for("peer to reject us", || {
        cluster
            .psql("nobody_here", "")
            .contains("Peer authentication failed")
            .then_some(())
    });
    let refused = cluster.psql("alice", "SELECT 1");
    assert!(
        refused.contains(r#"too many connections for role "alice""#),
        "{refused}"
    );
    assert!(
        cluster
            .psql("postgres", "SELECT 'a superuser'")
            .contains("a superuser")
    );
}

/// Under log_hostname, what the server calls the remote host is text that reverse DNS chooses.
fn addresses_stay_addresses(server: &Server) {
    let settings = [
        ("session_limit.max_sessions_per_role", "1"),
        ("session_limit.max_wait", "0"),
        ("log_hostname", "on"),
    ];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(&["CREATE ROLE alice LOGIN", "CREATE EXTENSION session_limit"]);
    let mut first = cluster.tcp_login_of("alice").login().expect("the first");
    assert_eq!(
        first.value("SELECT client_addr FROM session_limit.sessions"),
        "127.0.0.1"
    );
    let refusal = refused(&cluster.tcp_login_of("alice"));
    assert!(
        refusal
            .detail()
            .contains(&format!("pid {} from 127.0.0.1 since ", first.pid)),
        "{}",
        refusal.detail()
    );
}

fn each_client_has_its_address(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.sql(&["CREATE ROLE alice LOGIN", "CREATE EXTENSION session_limit"]);
    let login = |address| cluster.login_from("alice", address).login().expect("in");
    let _elsewhere = login("127.0.0.2");
    let mut here = login("127.0.1.1");
    let own = "SELECT client_addr FROM session_limit.sessions WHERE pid = pg_backend_pid()";
    assert_eq!(here.value(own), "127.0.1.1");
    let all = "SELECT string_agg(host(client_addr), ' ' ORDER BY client_addr) FROM session_limit.sessions";
    assert_eq!(here.value(all), "127.0.0.2 127.0.1.1");
}

/// Membership caches that are filled before there is a database lack pg_database_owner, and then
/// deny what it may do.
fn a_login_poisons_nothing(server: &Server) {
    let settings = [
        ("session_limit.max_sessions_per_role", "2"),
        ("session_limit.max_wait", "60s"),
    ];
    let cluster = Cluster::start(server, &settings);
    cluster.sql(&[
        "CREATE ROLE owners",
        "CREATE ROLE alice LOGIN IN ROLE owners CONNECTION LIMIT 1",
        "CREATE DATABASE app OWNER owners CONNECTION LIMIT 5",
    ]);
    let alice = cluster.login_of("alice").to("app");
    for round in 0..3 {
        // Each but the first waits for the one before, and so reads the catalogs more than once.
        let mut session = alice.login().expect("room");
        session.query(&format!("CREATE TABLE public.t{round} ()"));
        assert_eq!(
            session.value("SELECT pg_has_role('pg_database_owner', 'usage')"),
            "t"
        );
        session.close();
    }
}
