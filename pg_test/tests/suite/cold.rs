//! The very first login after a start, when no cache is there yet.

use pg_test::client::Target;
use pg_test::cluster::{Cluster, Stop};
use pg_test::server::Server;
use std::fs;

tests![the_first_login_after_a_start];

fn the_first_login_after_a_start(server: &Server) {
    let mut cluster = Cluster::start(server, &[("session_limit.max_sessions_per_role", "1")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN CONNECTION LIMIT 2",
        "CREATE DATABASE app CONNECTION LIMIT 9",
    ]);
    let alice = Target {
        database: Some("app".to_string()),
        ..cluster.login_of("alice")
    };
    let missing = Target {
        database: Some("missing".to_string()),
        ..cluster.login_of("alice")
    };
    let postgres = cluster.login_of("postgres");
    for with_init_files in [true, false] {
        for first in [&alice, &postgres, &missing] {
            cluster.stop(Stop::Fast);
            if !with_init_files {
                remove_init_files(&cluster);
            }
            cluster.start_again();
            match first.login() {
                Ok(mut session) => assert_eq!(session.value("SELECT current_user"), first.user),
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
            assert_eq!(alice.login().err().expect("a third").sqlstate(), "53300");
        }
    }
}

fn remove_init_files(cluster: &Cluster) {
    let data = cluster.dir.join("data");
    let databases = fs::read_dir(data.join("base")).expect("read base/");
    let databases = databases.map(|dir| dir.expect("read base/").path());
    let removed = databases
        .chain([data.join("global")])
        .filter(|dir| fs::remove_file(dir.join("pg_internal.init")).is_ok());
    assert!(removed.count() > 1, "there are files to remove");
}
