//! The SQL of one version and the library of another, as between the upgrade of a package, the restart of the server and
//! `ALTER EXTENSION … UPDATE`.

use crate::scene::{refused, set_label};
use pg_test::client::Session;
use pg_test::cluster::{Cluster, Stop};
use pg_test::place;
use pg_test::server::Server;
use pg_test::wait_for;
use std::fs;
use std::path::PathBuf;

tests![
    an_upgrade_is_as_a_fresh_install,
    old_sql_runs_on_the_library,
    a_symbol_keeps_its_signature,
    new_sql_on_an_old_library,
];

/// Every version that was released, the oldest first. Their install scripts never change.
const RELEASED: [&str; 1] = ["0.1.0"];

/// All that an installed extension consists of, in the order of its names.
const OBJECTS: &str = "
    SELECT pg_describe_object(d.classid, d.objid, 0),
           pg_get_functiondef(p.oid),
           pg_get_viewdef(c.oid),
           (SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
            FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
           (SELECT string_agg(coalesce(s.objsubid, 0) || ' ' || s.description, E'\\n' ORDER BY s.objsubid)
            FROM pg_description s WHERE s.classoid = d.classid AND s.objoid = d.objid),
           (SELECT string_agg(acl::text, ' ' ORDER BY acl::text)
            FROM unnest(coalesce(p.proacl, c.relacl, n.nspacl)) acl)
    FROM pg_depend d
    LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_namespace n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'session_limit')
    ORDER BY 1";

fn install(cluster: &Cluster, database: &str, statements: &[&str]) -> Vec<Vec<String>> {
    cluster.sql(&[&format!("CREATE DATABASE \"{database}\"")]);
    let mut session = cluster
        .login_of("postgres")
        .to(database)
        .login()
        .expect("a superuser");
    for statement in statements {
        session.query(statement);
    }
    session.query(OBJECTS)
}

fn an_upgrade_is_as_a_fresh_install(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let fresh = install(&cluster, "fresh", &["CREATE EXTENSION session_limit"]);
    assert!(fresh.len() > 10, "{fresh:?}");
    for version in RELEASED {
        let upgraded = install(
            &cluster,
            version,
            &[
                &format!("CREATE EXTENSION session_limit VERSION '{version}'"),
                // What a user builds upon a view stays.
                "CREATE VIEW of_mine AS SELECT usename, refused FROM session_limit.stats",
                "ALTER EXTENSION session_limit UPDATE",
                "SELECT * FROM of_mine",
            ],
        );
        for (upgraded, fresh) in upgraded.iter().zip(&fresh) {
            assert_eq!(upgraded, fresh, "{version}");
        }
        assert_eq!(upgraded.len(), fresh.len(), "{version}");
    }
}

/// Every view and function that each version has, while there is something to show.
fn call_all(cluster: &Cluster, database: &str) {
    let mut session = cluster
        .login_of("postgres")
        .to(database)
        .login()
        .expect("a superuser");
    for view in [
        "sessions",
        "limits",
        "usage",
        "events",
        "role_limits",
        "stats",
    ] {
        let rows = session.query(&format!("SELECT * FROM session_limit.{view}"));
        assert!(!rows.is_empty(), "{view}");
    }
    session.query("SELECT * FROM session_limit.explain_login('alice', 'postgres')");
    session.query("SELECT session_limit.set_limit(2, role => 'alice', database => 'postgres')");
    session.query("SELECT session_limit.clear_limit(role => 'alice', database => 'postgres')");
    session.query("SELECT session_limit.reset_stats()");
}

/// A limit of one, used and exceeded: while the session lasts, every view has a row.
fn alice_is_refused(cluster: &Cluster) -> Session {
    let alice = cluster.login_of("alice");
    let first = wait_for("room", || alice.login().ok());
    assert_eq!(refused(&alice).sqlstate(), "53300");
    first
}

fn old_sql_runs_on_the_library(server: &Server) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE ROLE alice LOGIN",
        &set_label("ROLE alice", r#"{"max": 1}"#),
    ]);
    for version in RELEASED {
        let create = format!("CREATE EXTENSION session_limit VERSION '{version}'");
        install(&cluster, version, &[&create]);
        let _alice = alice_is_refused(&cluster);
        call_all(&cluster, version);
    }
}

/// Of each function in C: its symbol, arguments and columns.
const SIGNATURES: &str = "
    SELECT prosrc, pg_get_function_arguments(oid), pg_get_function_result(oid), proretset, proargtypes,
           proallargtypes, prorettype
    FROM pg_proc WHERE pronamespace = 'session_limit'::regnamespace AND prolang =
        (SELECT oid FROM pg_language WHERE lanname = 'c')
    ORDER BY 1";

fn a_symbol_keeps_its_signature(server: &Server) {
    let cluster = Cluster::start(server, &[]);
    let signatures = |database: &str, create: &str| {
        install(&cluster, database, &[create]);
        let mut session = cluster
            .login_of("postgres")
            .to(database)
            .login()
            .expect("a superuser");
        session.query(SIGNATURES)
    };
    let new = signatures("new", "CREATE EXTENSION session_limit");
    for version in RELEASED {
        let create = format!("CREATE EXTENSION session_limit VERSION '{version}'");
        let old = signatures(version, &create);
        let same = |(old, new): &(&Vec<String>, &Vec<String>)| old[0] == new[0];
        let pairs = old
            .iter()
            .flat_map(|old| new.iter().map(move |new| (old, new)))
            .filter(same);
        let mut compared = 0;
        for (old, new) in pairs {
            assert_eq!(
                old, new,
                "{version}: the library of another version would read wrong rows"
            );
            compared += 1;
        }
        assert!(compared > 3, "{version}: {compared}");
    }
}

/// A copy of the library, of which an older one is made.
struct Copy {
    name: String,
    path: PathBuf,
}

impl Copy {
    fn of_library(server: &Server) -> Copy {
        let libraries = PathBuf::from(server.config("--pkglibdir"));
        let name = format!("session_limit_copy_{}", std::process::id());
        let path = libraries.join(&name).with_extension("so");
        fs::copy(libraries.join("session_limit.so"), &path).expect("copy the library");
        Copy { name, path }
    }

    /// As the library of a released version, which has no symbol that came since.
    fn age(&self) {
        let mut library = fs::read(&self.path).expect("the copy");
        for symbol in [
            "_0_2_wrapper\0",
            "current_status_wrapper\0",
            "current_waiters_wrapper\0",
        ] {
            let symbol = symbol.as_bytes();
            let places = library.windows(symbol.len()).enumerate();
            let places = places.filter_map(|(place, it)| (it == symbol).then_some(place));
            for place in places.collect::<Vec<_>>() {
                // By its right name it is not found any more.
                library[place + 1..place + 4].copy_from_slice(b"new");
            }
        }
        fs::write(&self.path, library).expect("write the old library");
    }

    /// A script of ours for the copy.
    fn script(&self, versions: &str) -> String {
        let file = format!("sql/session_limit--{versions}.sql");
        let sql = fs::read_to_string(place::checkout().join(file)).expect("a script");
        sql.replace("MODULE_PATHNAME", &format!("$libdir/{}", self.name))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn new_sql_on_an_old_library(server: &Server) {
    let copy = Copy::of_library(server);
    let settings = [
        ("shared_preload_libraries", copy.name.as_str()),
        ("session_limit.max_wait", "0"),
    ];
    let mut cluster = Cluster::plain(server, &settings);
    cluster.sql(&["CREATE DATABASE old", "CREATE ROLE alice LOGIN"]);
    let mut session = cluster.superuser();
    let version = session
        .value("SELECT default_version FROM pg_available_extensions WHERE name = 'session_limit'");
    session.query(&copy.script(&version));
    session.end();
    cluster.stop(Stop::Fast);
    copy.age();
    cluster.start_again();

    // The SQL comes from a primary, or stays when one goes back to the old library.
    cluster.sql(&[&set_label("ROLE alice", r#"{"max": 1}"#)]);
    let alice = alice_is_refused(&cluster);
    let mut session = cluster.superuser();
    for view in ["sessions", "events", "role_limits"] {
        let rows = session.query(&format!("SELECT * FROM session_limit.{view}"));
        assert!(!rows.is_empty(), "{view}");
    }
    for view in ["limits", "usage", "stats", "status", "waiters"] {
        must_be_missing(&mut session, &format!("SELECT * FROM session_limit.{view}"));
    }
    drop(alice);

    // Or someone updates before the restart: nothing changes.
    let old = cluster.login_of("postgres").to("old");
    let mut old = old.login().expect("a superuser");
    old.query(&copy.script(RELEASED[0]));
    must_be_missing(
        &mut old,
        &copy.script(&format!("{}--{version}", RELEASED[0])),
    );
    let _alice = alice_is_refused(&cluster);
    call_all(&cluster, "old");
}

fn must_be_missing(session: &mut Session, sql: &str) {
    let missing = session
        .try_query(sql)
        .expect_err("a symbol that is not there");
    assert_eq!(missing.sqlstate(), "42883", "{missing:?}");
    let message = missing.message();
    assert!(message.contains("could not find function"), "{missing:?}");
}
