//! Who is a member of a group, as far as its limits go, and what a group's total counts.

use crate::scene::{go_on, refused, stop, wait_until};
use pg_test::client::Session;
use pg_test::cluster::Cluster;
use pg_test::server::Server;

tests![
    who_is_a_member,
    grants_without_inherit_or_set,
    a_role_loses_and_gets_login,
    only_superusers_turn_a_labelled_role_into_a_group_or_back,
    a_label_and_login_that_change_at_once,
    a_total_counts_who_was_there_before,
    a_member_leaves,
    a_waiter_for_a_group_that_others_do_not_know,
    a_group_is_renamed_and_dropped,
    whoever_administers_a_group_is_named
];

fn start(server: &Server) -> (Cluster, Session) {
    let cluster = Cluster::start(server, &[("session_limit.max_wait", "0")]);
    cluster.sql(&[
        "CREATE EXTENSION session_limit",
        "CREATE ROLE team",
        "CREATE ROLE alice LOGIN",
        "CREATE ROLE bob LOGIN",
    ]);
    let superuser = cluster.superuser();
    (cluster, superuser)
}

const NONE_OF_THE_TEAM: &str =
    r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 0, "per": "role"}'"#;
const ONE_OF_THE_TEAM: &str =
    r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 1, "per": "group"}'"#;

/// So many that a role's are sought by an index.
const MANY_GRANTS: &str = "DO $$ BEGIN
    FOR i IN 1..500 LOOP
        EXECUTE format('CREATE ROLE %I ROLE alice IN ROLE pg_monitor', 'other' || i);
    END LOOP; END $$";

fn message(cluster: &Cluster, role: &str) -> String {
    let refusal = cluster.login_of(role).login().err();
    refusal.map_or(String::new(), |refusal| refusal.message().to_string())
}

/// Whether the team's limit of none is about this role.
fn is_member(cluster: &Cluster, role: &str) -> bool {
    match message(cluster, role).as_str() {
        "" => false,
        message => {
            assert_eq!(message, format!("too many connections for role \"{role}\""));
            true
        }
    }
}

fn who_is_a_member(server: &Server) {
    for many in [false, true] {
        let (cluster, mut superuser) = start(server);
        if many {
            superuser.query(MANY_GRANTS);
        }
        superuser.query(NONE_OF_THE_TEAM);
        assert!(!is_member(&cluster, "alice"));
        superuser.query("GRANT team TO alice");
        assert!(is_member(&cluster, "alice") && !is_member(&cluster, "bob"));
        superuser.query("REVOKE team FROM alice");
        assert!(!is_member(&cluster, "alice"));
        // Through other roles, those that may log in among them; whose own label is only about themselves.
        for sql in [
            "CREATE ROLE inner_circle IN ROLE team",
            "CREATE ROLE carol LOGIN IN ROLE inner_circle",
            "GRANT carol TO alice",
        ] {
            superuser.query(sql);
        }
        assert!(is_member(&cluster, "alice") && is_member(&cluster, "carol"));
        superuser.query(
            r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 99, "per": "group"}'"#,
        );
        superuser.query(
            r#"SECURITY LABEL FOR session_limit ON ROLE carol IS '{"max": 0, "per": "role"}'"#,
        );
        assert!(!is_member(&cluster, "alice") && is_member(&cluster, "carol"));
        superuser.query(r#"SECURITY LABEL FOR session_limit ON ROLE carol IS '{"max": -1}'"#);
        superuser.query(NONE_OF_THE_TEAM);
        assert!(
            !is_member(&cluster, "carol"),
            "she has no limit, by her own label"
        );
        // Superusers are members of nothing by nature, but by grants like others.
        superuser.query("CREATE ROLE root LOGIN SUPERUSER");
        cluster.set(&[("session_limit.exempt_superusers", "local")]);
        let root = cluster.login_from("root", "127.0.0.1");
        root.login().expect("no member");
        superuser.query("GRANT team TO root");
        assert_eq!(refused(&root).sqlstate(), "53300");
    }
}

fn grants_without_inherit_or_set(server: &Server) {
    for many in [false, true] {
        let (cluster, mut superuser) = start(server);
        if many {
            superuser.query(MANY_GRANTS);
        }
        superuser.query(NONE_OF_THE_TEAM);
        // A role that inherits nothing may still SET ROLE.
        superuser.query("ALTER ROLE alice NOINHERIT");
        superuser.query("GRANT team TO alice");
        assert!(is_member(&cluster, "alice"));
        if server.major == 15 {
            superuser.query("GRANT team TO bob WITH ADMIN OPTION");
            assert!(is_member(&cluster, "bob"), "in 15 an admin is a member");
            continue;
        }
        let cases = [
            ("ADMIN TRUE, INHERIT FALSE, SET FALSE", false),
            ("INHERIT TRUE, SET FALSE", true),
            ("INHERIT FALSE, SET TRUE", true),
            ("INHERIT FALSE, SET FALSE", false),
        ];
        for (options, member) in cases {
            superuser.query("REVOKE team FROM bob");
            superuser.query(&format!("GRANT team TO bob WITH {options}"));
            assert_eq!(is_member(&cluster, "bob"), member, "{options}");
        }
        // Nor is one whose way to the team has such a grant in it; nor the creator of a role.
        for sql in [
            "CREATE ROLE creator LOGIN CREATEROLE",
            "SET ROLE creator",
            "CREATE ROLE created",
            "RESET ROLE",
            "GRANT team TO created",
            "GRANT created TO bob WITH INHERIT FALSE, SET FALSE",
        ] {
            superuser.query(sql);
        }
        assert!(!is_member(&cluster, "bob") && !is_member(&cluster, "creator"));
        superuser.query("GRANT created TO bob WITH INHERIT TRUE");
        assert!(is_member(&cluster, "bob"));
    }
}

fn a_role_loses_and_gets_login(server: &Server) {
    let (cluster, mut superuser) = start(server);
    superuser.query("ALTER ROLE team LOGIN");
    superuser.query("GRANT team TO alice");
    superuser.query(r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"limits": [{"max": 0}, {"max": 1, "per": "address"}]}'"#);
    let unmatched =
        "SELECT string_agg(per || ' ' || unmatched, ', ' ORDER BY per) FROM session_limit.limits";
    let from_here = cluster.login_from("alice", "127.0.0.1");
    let _two = [
        from_here.login().expect("not alice's"),
        from_here.login().expect("not alice's"),
    ];
    assert_eq!(
        message(&cluster, "team"),
        r#"too many connections for role "team""#
    );
    assert_eq!(superuser.value(unmatched), "address false, role false");
    // As a group's it must say what it counts: what does not is about nobody.
    superuser.query("ALTER ROLE team NOLOGIN");
    assert_eq!(message(&cluster, "alice"), "");
    assert_eq!(
        refused(&from_here).message(),
        r#"too many connections for role "alice" from address 127.0.0.1"#
    );
    assert_eq!(
        superuser.query("SELECT per, unmatched FROM session_limit.limits ORDER BY per"),
        [["address", "f"], ["", "t"]]
    );
    superuser.query("ALTER ROLE team LOGIN");
    from_here.login().expect("as before");
    // And a total of the members is nothing for a role that may log in.
    superuser.query("ALTER ROLE team NOLOGIN");
    superuser.query(ONE_OF_THE_TEAM);
    superuser.query("ALTER ROLE team LOGIN");
    assert_eq!(message(&cluster, "alice") + &message(&cluster, "team"), "");
    assert_eq!(superuser.value(unmatched), "group true");
}

/// Else whoever administers a role could give it a label while it may log in, and so limit, or
/// exempt, any member of it afterwards; or take a superuser's label from a group.
fn only_superusers_turn_a_labelled_role_into_a_group_or_back(server: &Server) {
    let (cluster, mut superuser) = start(server);
    superuser.query("CREATE ROLE creator LOGIN CREATEROLE");
    let mut creator = cluster.login_of("creator").login().expect("the creator");
    let refused = |creator: &mut Session, sql: &str| {
        let error = creator.try_query(sql).expect_err(sql);
        assert_eq!(error.sqlstate(), "42501", "{error:?}");
        assert_eq!(
            error.message(),
            "must be superuser to change LOGIN of a role with such a session_limit label"
        );
    };
    creator.query("CREATE ROLE trap LOGIN");
    for label in [r#"{"max": 0, "per": "address"}"#, r#"{"max_wait": 0}"#] {
        creator.query(&format!(
            "SECURITY LABEL FOR session_limit ON ROLE trap IS '{label}'"
        ));
        refused(&mut creator, "ALTER ROLE trap NOLOGIN");
    }
    creator.query("ALTER ROLE trap LOGIN CONNECTION LIMIT 3 PASSWORD 'secret'");
    creator.query("ALTER ROLE trap RENAME TO trapped");
    // What says nothing of members may stay while the account is locked.
    creator.query(r#"SECURITY LABEL FOR session_limit ON ROLE trapped IS '{"max": 1}'"#);
    creator.query("ALTER ROLE trapped NOLOGIN");
    creator.query("ALTER ROLE trapped LOGIN");
    creator.query("SECURITY LABEL FOR session_limit ON ROLE trapped IS NULL");
    creator.query("ALTER ROLE trapped NOLOGIN");
    superuser.query(
        r#"SECURITY LABEL FOR session_limit ON ROLE trapped IS '{"max": 5, "per": "role"}'"#,
    );
    creator.query("ALTER ROLE trapped CONNECTION LIMIT 5");
    refused(&mut creator, "ALTER ROLE trapped LOGIN");
    // A superuser is told what no longer fits.
    superuser.query("ALTER ROLE trapped LOGIN");
    let shown = cluster.psql("postgres", "ALTER ROLE trapped NOLOGIN");
    assert!(!shown.contains("WARNING"), "{shown}");
    superuser.query("ALTER ROLE alice LOGIN");
    superuser.query(r#"SECURITY LABEL FOR session_limit ON ROLE alice IS '{"max": 1}'"#);
    let shown = cluster.psql("postgres", "ALTER ROLE alice NOLOGIN");
    assert!(
        shown.contains("WARNING:  the role's session_limit label does not fit"),
        "{shown}"
    );
}

/// The label is set and not committed when the role is to lose LOGIN, and the other way round.
fn a_label_and_login_that_change_at_once(server: &Server) {
    let (cluster, mut superuser) = start(server);
    superuser.query("CREATE ROLE creator LOGIN CREATEROLE");
    let mut creators = [0, 1].map(|_| cluster.login_of("creator").login().expect("the creator"));
    creators[0].query("CREATE ROLE trap LOGIN");
    let label = r#"SECURITY LABEL FOR session_limit ON ROLE trap IS '{"max": 0, "per": "role"}'"#;
    for (first, second) in [
        (label, "ALTER ROLE trap NOLOGIN"),
        ("ALTER ROLE trap NOLOGIN", label),
    ] {
        let [one, other] = &mut creators;
        one.query("BEGIN");
        one.query(first);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| other.try_query(second));
            let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'object'";
            wait_until(&mut superuser, waits, "1");
            one.query("COMMIT");
            let error = late.join().expect("the second").expect_err(second);
            assert_eq!(error.sqlstate(), "42501", "{error:?}");
        });
        superuser.query("SECURITY LABEL FOR session_limit ON ROLE trap IS NULL");
        superuser.query("ALTER ROLE trap LOGIN");
    }
}

fn a_total_counts_who_was_there_before(server: &Server) {
    let (cluster, mut superuser) = start(server);
    let _before_the_grant = cluster.login_of("alice").login().expect("alice");
    superuser.query("GRANT team TO alice, bob");
    let _before_the_label = cluster.login_of("bob").login().expect("bob");
    superuser
        .query(r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 3, "per": "group"}'"#);
    let _third = cluster.login_of("bob").login().expect("the third of three");
    assert_eq!(
        message(&cluster, "alice"),
        r#"too many connections for members of role "team""#
    );
    assert_eq!(
        superuser.query("SELECT source, per, subject, in_use, max FROM session_limit.usage"),
        [["label on role team", "group", "team", "3", "3"]]
    );
    // What a refused login is told of: its own sessions only.
    let refusal = refused(&cluster.login_of("alice"));
    assert!(refusal.detail().starts_with("The limit is 3 sessions (label on role team); 3 are in use, 1 of them by this role: pid "), "{refusal:?}");
}

fn a_member_leaves(server: &Server) {
    let (cluster, mut superuser) = start(server);
    superuser.query("GRANT team TO alice, bob");
    superuser.query(ONE_OF_THE_TEAM);
    let mut alice = cluster.login_of("alice").login().expect("alice");
    assert_ne!(message(&cluster, "bob"), "");
    superuser.query("REVOKE team FROM alice");
    let _bob = cluster
        .login_of("bob")
        .login()
        .expect("alice counts no more");
    superuser.query("GRANT team TO alice");
    assert_ne!(message(&cluster, "bob"), "");
    assert!(alice.is_alive());
    // A role that was dropped is no member; its session goes on.
    superuser.query("DROP ROLE alice");
    assert_eq!(
        superuser.value("SELECT in_use FROM session_limit.usage"),
        "1"
    );
    assert!(alice.is_alive());
}

/// Bob's login is in the same database as alice's, who waits for the team: to know whether she goes
/// first, it must find out who is in the team.
fn a_waiter_for_a_group_that_others_do_not_know(server: &Server) {
    let (cluster, mut superuser) = start(server);
    superuser.query("GRANT team TO alice");
    superuser.query(r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"max": 1, "per": "group", "max_wait": "30s"}'"#);
    let _first = cluster.login_of("alice").login().expect("the first");
    superuser.query("ALTER DATABASE postgres CONNECTION LIMIT 3");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| cluster.login_of("alice").login());
        let waiting = "SELECT waiting FROM session_limit.usage WHERE per = 'group'";
        wait_until(&mut superuser, waiting, "1");
        // If she looked while bob is in, she would be refused: for the database she does not wait.
        let [alice] = cluster.processes(" authentication")[..] else {
            panic!("not one waiter");
        };
        stop(alice);
        let bob = cluster
            .login_of("bob")
            .login()
            .expect("alice cannot go in: bob overtakes her");
        assert_eq!(
            message(&cluster, "bob"),
            r#"too many connections for database "postgres""#
        );
        bob.close();
        // Neither here nor in the server's own count.
        cluster.wait_until_gone("bob");
        superuser.query("REVOKE team FROM alice");
        go_on(alice);
        waiter
            .join()
            .expect("alice")
            .expect("she waits for nothing any more");
    });
}

fn a_group_is_renamed_and_dropped(server: &Server) {
    let (cluster, mut superuser) = start(server);
    superuser.query("GRANT team TO alice");
    superuser.query(ONE_OF_THE_TEAM);
    let _first = cluster.login_of("alice").login().expect("the first");
    superuser.query("ALTER ROLE team RENAME TO crew");
    let refusal = refused(&cluster.login_of("alice"));
    assert_eq!(
        refusal.message(),
        r#"too many connections for members of role "crew""#
    );
    assert!(
        refusal.detail().contains("(label on role crew)"),
        "{refusal:?}"
    );
    superuser.query("DROP ROLE crew");
    assert_eq!(superuser.value("SELECT count(*) FROM pg_shseclabel"), "0");
    cluster.login_of("alice").login().expect("no limit");
}

/// Labels the team, and checks whom the warning and the view name.
fn assert_administrators(cluster: &Cluster, label: &str, names: &str) {
    let shown = cluster.psql("postgres", label);
    let warning = "WARNING:  roles that are no superusers can make anyone a member of role \"team\", which has a session_limit label: ";
    let warned = shown.split_once(warning).map(|(_, names)| names);
    let warned = warned.and_then(|names| names.lines().next());
    assert_eq!(warned.unwrap_or(""), names, "{shown}");
    let column =
        "SELECT coalesce(array_to_string(administrators, ', '), '') FROM session_limit.limits";
    assert_eq!(cluster.superuser().value(column), names);
}

/// Whoever has ADMIN on a group can put anyone under its label.
fn whoever_administers_a_group_is_named(server: &Server) {
    let (cluster, mut superuser) = start(server);
    let admin = match server.major {
        15 => "WITH ADMIN OPTION",
        _ => "WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
    };
    for sql in [
        "CREATE ROLE carol LOGIN",
        "CREATE ROLE inner_circle IN ROLE team",
        "CREATE ROLE root SUPERUSER",
        "GRANT team TO alice",
        &format!("GRANT team TO root {admin}"),
        &format!("GRANT root TO alice {admin}"),
    ] {
        superuser.query(sql);
    }
    assert_administrators(&cluster, NONE_OF_THE_TEAM, "");
    superuser.query(&format!("GRANT team TO alice {admin}"));
    assert_administrators(&cluster, NONE_OF_THE_TEAM, "alice");
    // To make someone a member of a member is as good.
    superuser.query(&format!("GRANT inner_circle TO bob {admin}"));
    assert_administrators(&cluster, ONE_OF_THE_TEAM, "alice, bob");
    let mut bob = cluster.login_of("bob").login().expect("the only one");
    bob.query("GRANT inner_circle TO carol");
    bob.end();
    superuser.query(NONE_OF_THE_TEAM);
    assert!(is_member(&cluster, "carol"));
    // From 16 on whoever creates a role has it with ADMIN; before, CREATEROLE is enough.
    for sql in [
        "CREATE ROLE creator CREATEROLE",
        "SET ROLE creator",
        "CREATE ROLE created",
        "RESET ROLE",
        "GRANT team TO created",
    ] {
        superuser.query(sql);
    }
    let set_limit = "SELECT session_limit.set_limit(role => 'team', per => 'role', max => 9)";
    assert_administrators(&cluster, set_limit, "alice, bob, creator");
    superuser.query("ALTER ROLE creator NOCREATEROLE");
    superuser.query("REVOKE ADMIN OPTION FOR created FROM creator");
    assert_administrators(&cluster, set_limit, "alice, bob");
    // No more than five are named.
    for i in 1..=5 {
        superuser.query(&format!("CREATE ROLE other{i}"));
        superuser.query(&format!("GRANT team TO other{i} {admin}"));
    }
    let exempt = r#"SECURITY LABEL FOR session_limit ON ROLE team IS '{"exempt": true}'"#;
    let shown = cluster.psql("postgres", exempt);
    let named = "label: alice, bob, other1, other2, other3, and 2 more\n";
    assert!(shown.contains(named), "{shown}");
    // A label that says nothing about members gives no power over them.
    let empty = "SECURITY LABEL FOR session_limit ON ROLE team IS '{}'";
    let shown = cluster.psql("postgres", empty);
    assert!(!shown.contains("WARNING"), "{shown}");
}
