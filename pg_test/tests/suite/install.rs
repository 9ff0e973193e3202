//! The statements of docs/install.md that change a server which has more than this library.

use crate::scene::set_label;
use pg_test::client::Session;
use pg_test::cluster::{Cluster, Stop};
use pg_test::place;
use pg_test::server::Server;
use std::fs;

tests![
    preloading_adds_to_the_list,
    settings_are_removed,
    labels_are_removed_also_without_the_library
];

fn read(page: &str) -> String {
    fs::read_to_string(place::checkout().join(page)).expect(page)
}

/// The SQL below a heading of the page.
fn fences(heading: &str) -> Vec<String> {
    let page = read("docs/install.md");
    let (_, rest) = page.split_once(&format!("# {heading}\n")).expect(heading);
    let section = rest.split("\n#").next().expect("a section");
    let fences = section.split("```sql\n").skip(1);
    let fences = fences.map(|fence| fence.split("```").next().expect("the end of a fence"));
    fences.map(|fence| fence.trim().to_string()).collect()
}

/// What psql makes of `\gexec`: runs each statement that the query returns.
fn gexec(session: &mut Session, sql: &str) -> Result<(), String> {
    let query = sql.strip_suffix("\\gexec").expect(sql);
    for row in session.query(query) {
        let outcome = session.try_query(&row[0]);
        outcome.map_err(|error| error.message().to_string())?;
    }
    Ok(())
}

fn preloading_adds_to_the_list(server: &Server) {
    let query = fences("Preload it").remove(0);
    assert!(read("README.md").contains(&query), "the README has it, too");
    for (before, after) in [
        ("", "session_limit"),
        (
            "\"$libdir/plpgsql\" , plpgsql",
            "\"$libdir/plpgsql\", plpgsql, session_limit",
        ),
        ("session_limit, plpgsql", "plpgsql, session_limit"),
        ("session_limit", "session_limit"),
    ] {
        let mut cluster = Cluster::plain(server, &[("shared_preload_libraries", before)]);
        gexec(&mut cluster.superuser(), &query).expect("it is set");
        cluster.stop(Stop::Fast);
        cluster.start_again();
        let mut superuser = cluster.superuser();
        let list = superuser.value("SHOW shared_preload_libraries");
        assert_eq!(list, after);
        assert_eq!(superuser.value("SHOW session_limit.enforcement"), "on");
    }
}

fn settings_are_removed(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    cluster.set(&[
        ("session_limit.max_sessions_per_role", "7"),
        ("session_limit.cluster_limits", ""),
    ]);
    let query = fences("Remove all settings").remove(0);
    gexec(&mut cluster.superuser(), &query).expect("they are removed");
    let file = cluster.dir.join("data/postgresql.auto.conf");
    let left = fs::read_to_string(file).expect("the file");
    assert!(!left.contains("session_limit."), "{left}");
}

fn labels_are_removed_also_without_the_library(server: &Server) {
    let [remove, load] = fences("Remove all labels").try_into().expect("two");
    let mut cluster = Cluster::start(server, &[]);
    for sql in [
        "CREATE ROLE \"an odd \"\"role\" LOGIN",
        "CREATE ROLE team",
        "CREATE DATABASE \"an odd database\"",
    ] {
        cluster.sql(&[sql]);
    }
    let label = || {
        cluster.sql(&[
            &set_label("ROLE \"an odd \"\"role\"", r#"{"max": 1}"#),
            &set_label("ROLE team", r#"{"max": 1, "per": "group"}"#),
            &set_label("DATABASE \"an odd database\"", r#"{"max": 1}"#),
        ]);
    };
    let left = "SELECT count(*) FROM pg_seclabels WHERE provider = 'session_limit'";
    label();
    let mut superuser = cluster.superuser();
    assert_eq!(superuser.value(left), "3");
    gexec(&mut superuser, &remove).expect("they are removed");
    assert_eq!(superuser.value(left), "0");

    label();
    superuser.query("ALTER SYSTEM SET shared_preload_libraries = plpgsql");
    cluster.stop(Stop::Fast);
    cluster.start_again();
    let mut superuser = cluster.superuser();
    let why = gexec(&mut superuser, &remove).expect_err("the library is not there");
    assert_eq!(
        why,
        "security label provider \"session_limit\" is not loaded"
    );
    superuser.query(&load);
    gexec(&mut superuser, &remove).expect("they are removed");
    assert_eq!(superuser.value(left), "0");
}
