//! The very first login after a start, when no cache is there yet.

use crate::scene::{admitted, refused};
use pg_test::client::{Session, Target};
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use std::fs;

tests![
    the_first_login_after_a_start,
    labels_and_groups_on_the_first_login,
    reads_no_more_than_it_must
];

fn the_first_login_after_a_start(server: &Server) {
    let settings = [
        ("session_limit.max_sessions_per_role", "1"),
        ("autovacuum", "off"),
    ];
    let mut cluster = Cluster::start(server, &settings);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 2",
        "CREATE DATABASE app CONNECTION LIMIT 9",
    ]);
    let alice = cluster.login_of("alice").to("app");
    let missing = cluster.login_of("alice").to("missing");
    let postgres = cluster.login_of("postgres");
    for (with_init_files, far) in [(true, false), (false, false), (true, true), (false, true)] {
        if far {
            // Off the catalog's first page.
            cluster.sql(&[MANY_CHANGES]);
        }
        for first in [&alice, &postgres, &missing] {
            cluster.stop(Stop::Fast);
            if !with_init_files {
                remove_init_files(&cluster);
            }
            cluster.start_again();
            match first.login() {
                Ok(mut session) => {
                    assert_eq!(session.value("SELECT current_user"), first.user);
                    session.end();
                }
                Err(refusal) => {
                    assert_eq!(refusal.sqlstate(), "3D000", "{refusal:?}");
                    assert_eq!(refusal.message(), r#"database "missing" does not exist"#);
                    assert_eq!(first.database.as_deref(), Some("missing"));
                }
            }
            // It was counted, too.
            let _sessions = [
                alice.login().expect("the first of two"),
                alice.login().expect("the second"),
            ];
            assert_eq!(refused(&alice).sqlstate(), "53300");
        }
    }
}

const MANY_CHANGES: &str = "DO $$
    BEGIN
        FOR i IN 1..100 LOOP
            EXECUTE 'ALTER DATABASE app CONNECTION LIMIT ' || i;
        END LOOP;
        ASSERT (SELECT ctid >= '(1,0)' FROM pg_database WHERE datname = 'app');
    END $$";

fn remove_init_files(cluster: &Cluster) {
    let data = cluster.dir.join("data");
    let databases = fs::read_dir(data.join("base")).expect("read base/");
    let databases = databases.map(|dir| dir.expect("read base/").path());
    let removed = databases
        .chain([data.join("global")])
        .filter(|dir| fs::remove_file(dir.join("pg_internal.init")).is_ok());
    assert!(removed.count() > 1, "there are files to remove");
}

fn labels_and_groups_on_the_first_login(server: &Server) {
    let mut cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE ROLE outer_team",
        "CREATE ROLE team IN ROLE outer_team",
        "CREATE ROLE alice LOGIN IN ROLE team",
        "CREATE ROLE bob LOGIN IN ROLE outer_team",
        r#"SECURITY LABEL FOR session_limit ON ROLE outer_team IS '{"max": 2, "per": "group"}'"#,
        r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1}'"#,
        r#"SECURITY LABEL FOR session_limit ON DATABASE postgres IS '{"max": 0, "per": "address"}'"#,
    ]);
    let message = |target: &Target| {
        target
            .login()
            .err()
            .map(|refusal| refusal.message().to_string())
    };
    let from = r#"too many connections for database "postgres" from address 127.0.0.1"#;
    for (with_init_files, many) in [(true, false), (false, false), (true, true), (false, true)] {
        if many {
            // So many, and so many memberships, that each is looked up.
            cluster.sql(&[MANY_LABELS]);
        }
        cluster.stop(Stop::Fast);
        if !with_init_files {
            remove_init_files(&cluster);
        }
        cluster.start_again();
        assert_eq!(
            message(&cluster.tcp_login_of("alice")).as_deref(),
            Some(from)
        );
        let _alice = cluster.login_of("alice").login().expect("alice");
        assert_eq!(
            message(&cluster.login_of("alice")).as_deref(),
            Some(r#"too many connections for role "alice""#)
        );
        let _bob = cluster.login_of("bob").login().expect("bob");
        let team = r#"too many connections for members of role "outer_team""#;
        assert_eq!(message(&cluster.login_of("bob")).as_deref(), Some(team));
    }
}

const MANY_LABELS: &str = r#"DO $$
    DECLARE
        name text;
    BEGIN
        FOR i IN 1..400 LOOP
            EXECUTE format('CREATE ROLE %I LOGIN IN ROLE pg_monitor', 'r' || gen_random_uuid());
        END LOOP;
        FOR name IN SELECT rolname FROM pg_roles WHERE rolname LIKE 'r%-%' LOOP
            EXECUTE format('SECURITY LABEL FOR session_limit ON ROLE %I IS %L', name, '{"max": 1, "per": "address"}');
        END LOOP;
        ASSERT pg_relation_size('pg_shseclabel') > 3 * 8192;
    END $$"#;

/// As the server counts what is read of its catalogs: nothing of labels when there is none, and nothing of
/// memberships when no group has one.
fn reads_no_more_than_it_must(server: &Server) {
    // The worker is not to read any meanwhile.
    let settings = [("autovacuum", "off"), ("session_limit.sweep", "off")];
    let cluster = Cluster::start(server, &settings);
    let mut superuser = cluster.superuser();
    superuser.query("CREATE ROLE team");
    superuser.query("CREATE ROLE alice LOGIN IN ROLE team");
    let mut reads = |sql: &str| {
        superuser.query(sql);
        let before = blocks(&mut superuser);
        admitted(&cluster.login_of("alice")).end();
        let after = blocks(&mut superuser);
        [after[0] > before[0], after[1] > before[1]]
    };
    assert_eq!(reads("SELECT"), [false, false]);
    assert_eq!(
        reads(r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 5}'"#),
        [true, false]
    );
    assert_eq!(
        reads(r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 5, "per": "role"}'"#),
        [true, true]
    );
}

/// How many blocks of labels and of memberships were read.
fn blocks(superuser: &mut Session) -> [u64; 2] {
    // What this session itself has read is not to come later.
    superuser.query("SELECT pg_stat_force_next_flush()");
    let mut of = |catalog: &str| {
        let sql = format!(
            "SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit FROM pg_statio_sys_tables
             WHERE relname = '{catalog}'"
        );
        superuser.value(&sql).parse().expect("a number")
    };
    [of("pg_shseclabel"), of("pg_auth_members")]
}
