//! `cargo bench-report`: makes `docs/benchmarks.md` and its pictures of the figures that the benchmarks
//! left in `target/bench`.
//!
//! What is written here by hand says what was measured and how to read it; what came out, only the
//! figures say.

use pg_test::bench::{self, Column, Figures, Found, Kept, Table};
use pg_test::picture::{self, Bar, Group};
use pg_test::{place, say};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const HEAD: &str = "# Benchmarks

Made by `cargo bench-report` of the figures of the commands below; do not edit it. Run them yourself: each gets its
servers, shows its progress, and interleaves the variants in random order, so that what slows the machine for a while slows
all of them.

How to read it: a figure is the median of the rounds, with the 10th and 90th percentile of the rounds in parentheses; one without
them is of all rounds together. A ratio is that of the same round to the table's first row. The best median of a column is bold where
one is better than another, however near they are: compare the percentiles. In the pictures a bar is the
median, its line the percentiles; a grey band is how far a library whose hook does nothing differs from no library, that is, noise.
";

/// Command, title, and what is to be known of it, in this order.
const TEXTS: &[(&str, &str, &str)] = &[
    (
        "login",
        "What a login costs",
        "Logins one after the other; for each round all servers are started anew. CPU is that of the server's processes, in
kernel and user mode, over their whole life; time is that of the client, from connecting to being let in, and closing. The last
`session_limit` row has every kind of label that a login can meet at once; the trigger, for servers that have login triggers, counts the role's sessions in `pg_stat_activity`.",
    ),
    (
        "hook",
        "The time in the hook",
        "By the clock of `session_limit.stats`: what a login adds to `decision_us`, from the hook's beginning to its end, without waiting. Each login is a new process,
whose caches are cold.",
    ),
    (
        "scale",
        "Many sessions, many limits",
        "First new backends of a server with so many sessions in it, by the clock of `session_limit.stats`: what grows with the sessions is the time for which a login
holds the lock. The 4 limits are of the role, its address, a group and the database; of the 16, twelve more are of networks.

Then only the decision, which is all that happens under the lock, on the table alone and with warm caches: with limits of one kind, or of four (mixed). The sessions are those of 1,000
roles in 10 databases from 250 addresses, or all of one role in one database from one address. The last table has the other ways that a decision can go: refused; with logins in the queue,
where there is room for all or for some of them; ending one session, or, because the limit was lowered, half of all.",
    ),
    (
        "refusals",
        "What a refusal costs",
        "Refused logins one after the other, under `CONNECTION LIMIT 1` and without waiting; and queries of a session that is in, beside clients that try
again as soon as they are refused. Those get the more refusals, and so disturb the more, the cheaper a refusal is for them and the server.",
    ),
    (
        "exact",
        "How exact the limits are",
        "Logins at the same moment; those that get in stay until the last is decided. Exact is a round in which as many get in as the limit says. A script
that ends excess sessions cannot keep anyone out: how many were in at once, and for how long too many, is what `pg_stat_activity` says, from when it first shows
too many to when it last does. It looks every 100 ms here; one that looks less often leaves them longer. Login triggers are there from PostgreSQL 17 on.

Then clients, as many as the limit allows, that close and log in again at once: there is never one too many, so none need be refused. For the script
it is counted whom it told to end.",
    ),
    (
        "wait",
        "How soon a waiting login is let in",
        "By the client's clock, until it is let in: of a login that finds room, from sending its startup packet; of one that waits for the only
place, from sending the other session's goodbye. The first has a new process in it, the second the end of another's.",
    ),
    (
        "pool",
        "PgBouncer beside it",
        "The same clients on the same number of server sessions: queued by PgBouncer, with a pool of that size, and queued by `session_limit.max_wait` under a
`CONNECTION LIMIT` of that size. A request is a login, a query and a close; where the clients stay connected, it is a query. The time to the result is counted from
the beginning of the login, or from sending the query, and so has the waiting in it; of each round it has the median, the 99th percentile and the longest. CPU
is the server's and PgBouncer's. Everything is on one machine, and the clients take their part of its cores.

The short query takes a session for so little time that the machine, not the number of sessions, may be what holds requests up: a login may
wait for the server to make its process, before session_limit sees it. The longer one fills the sessions, so that it is their number. In the last table some clients hold all server sessions and the others wait.

They do different things. PgBouncer keeps its server sessions: a client's login makes no new process, a waiting client is a socket and
some memory, and clients that stay connected can share sessions by transaction. A login that waits for session_limit is a process of the
server's, made for it, that goes on to be its session; so it takes one of `max_connections` while it waits. But PgBouncer counts only what goes through it, each of its processes
for itself, and clients that share sessions by transaction share what is set in them; session_limit counts every session of the server, whatever way it came, and
gives a client a session of its own. To use both: a pool for those many short requests, and limits for whoever comes past the pool, such as people, jobs, other poolers,
and for the pool itself, with room for its size.",
    ),
    (
        "seats",
        "Seats",
        "`take_seat` and `release_seat`, beside `pg_try_advisory_lock` and `pg_advisory_unlock` of the key's `hashtext`: a statement for each call, over a Unix-domain
socket, and all in one statement. A ratio to the lock is to that with as many held. The seats and locks that are held are another session's; those with a ttl have
one of a day.

Then logins beside clients that take and give back all the time: they take their part of the machine's cores, with seats or without.",
    ),
    (
        "servers",
        "Limits across servers",
        "Two fleets of three servers take turns; the etcd of one has one member, that of the other three. Servers, etcd and clients share the machine and its disk, to
which etcd writes before it answers. A network between them adds its round trips.

First logins one after the other, by the client's clock, from connecting to being in. A place is held where a session of the same role has just ended on that server. Etcd is asked
where each login has another role, which no server holds a place for; beside it a put of one key to the same etcd, by the client that the servers use. The two servers without `etcd_endpoints`
differ in nothing.

Then clients that log in and close all the time, eight on each server: without a limit; all under one limit, as those of a pool; and each login as a role that
the server holds no place for, with a limit of its own. Transactions are those that the servers have sent, by etcd's own count, with those that only look. Who is refused tries again at once, and its time goes on.

Then etcd's leader is killed, and on each server a login begins that needs a place of etcd; with `on_unreachable = refuse`, and as long as it is refused it tries again. Who finds a place that its server holds, or has no such
limit, is not held up. Where nothing happens, a server writes its sign of life, every 2.5 seconds.",
    ),
    (
        "chaos",
        "Survival",
        "Clients that log in, query, idle, vanish, wait, and are told to end, cancelled, replaced and killed with `kill -9`, under limits of every kind, on a primary
and its standby; labels, grants and settings change meanwhile, and the servers crash and are restarted. At each quiet point what `pg_stat_activity` and the clients' books say
is held against a model of what is set, which is no part of the extension, and so is what becomes of logins that are tried then (probes): a violation is a limit exceeded, room left unused, a
session that ended without a reason, slots that are not the live client backends, or a panic in the log. Terminated and cancelled are those that the run told to.",
    ),
];

fn main() {
    let docs = place::checkout().join("docs");
    remove_pictures(&docs);
    let mut page = HEAD.to_string();
    for (name, kept) in all() {
        let known = TEXTS.iter().find(|(known, _, _)| *known == name);
        let (title, text) = known.map_or((&*name, ""), |(_, title, text)| (*title, *text));
        let command = match &*name {
            "chaos" => name.clone(),
            _ => format!("bench-{name}"),
        };
        let _ = write!(page, "\n## {title}\n\n`cargo {command}`. {text}\n");
        for (file, title, svg) in pictures(&name, &kept) {
            fs::write(docs.join(&file), svg).expect("write a picture");
            let _ = write!(page, "\n![{title}]({file})\n");
        }
        for (major, found) in &kept {
            section(&mut page, *major, found);
        }
    }
    let file = docs.join("benchmarks.md");
    fs::write(&file, page).expect("write the page");
    say(format_args!("made {} and its pictures", file.display()));
}

/// A picture that is made no more is not to stay.
fn remove_pictures(docs: &Path) {
    for file in fs::read_dir(docs).expect("read docs").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with("bench-") && name.ends_with(".svg") {
            fs::remove_file(file.path()).expect("remove a picture");
        }
    }
}

/// The figures there are, those with a text first.
fn all() -> Vec<(String, Kept)> {
    let entries = fs::read_dir(bench::dir()).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let name = |file: &Path| {
        let name = file.file_stem().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    files.retain(|file| file.extension().is_some_and(|it| it == "json"));
    files.sort_by_key(|file| {
        let place = TEXTS.iter().position(|text| text.0 == name(file));
        (place.unwrap_or(TEXTS.len()), name(file))
    });
    let kept = |file: PathBuf| {
        let kept = bench::kept(&file);
        if kept.is_none() {
            say(format_args!("passed over {}", file.display()));
        }
        Some((name(&file), kept?))
    };
    files.into_iter().filter_map(kept).collect()
}

fn section(page: &mut String, major: u32, found: &Found) {
    let _ = write!(
        page,
        "\n### PostgreSQL {major}\n\n{}. {}.\n",
        found.machine, found.measured
    );
    for table in &found.tables {
        let names = table.columns.iter().map(|column| column.name.as_str());
        let _ = write!(
            page,
            "\n| {} | {} |\n| --- |{}\n",
            table.title,
            names.collect::<Vec<_>>().join(" | "),
            " ---: |".repeat(table.columns.len())
        );
        for (row, name) in table.rows.iter().enumerate() {
            let cells = table.columns.iter().map(|column| cell(column, row));
            let cells: Vec<String> = cells.collect();
            let _ = writeln!(page, "| {name} | {} |", cells.join(" | "));
        }
    }
}

fn cell(column: &Column, row: usize) -> String {
    let text = column
        .cells
        .get(row)
        .map_or(String::new(), |cell| cell.text(column.decimals));
    match column.best().contains(&row) {
        true => format!("**{text}**"),
        false => text,
    }
}

/// File, title and picture of each column that has one, the majors under each other.
fn pictures(name: &str, kept: &Kept) -> Vec<(String, String, String)> {
    let mut titles: Vec<(String, String)> = Vec::new();
    for table in kept.values().flat_map(|found| &found.tables) {
        for column in table.columns.iter().filter(|column| column.picture) {
            let title = (table.title.clone(), column.name.clone());
            if !titles.contains(&title) {
                titles.push(title);
            }
        }
    }
    let picture = |(number, (table, column)): (usize, (String, String))| {
        let groups: Vec<Group> = kept
            .iter()
            .filter_map(|(major, found)| {
                let found = found.tables.iter().find(|found| found.title == table)?;
                group(*major, found, &column)
            })
            .collect();
        let title = format!("{table}: {column}");
        let svg = picture::bars(&title, &groups);
        (format!("bench-{name}-{}.svg", number + 1), title, svg)
    };
    titles.into_iter().enumerate().map(picture).collect()
}

fn group(major: u32, table: &Table, column: &str) -> Option<Group> {
    let column = table.columns.iter().find(|it| it.name == column)?;
    let spread = |cell: &Figures| (cell.part(10), cell.part(90));
    let bar = |(name, cell): (&String, &Figures)| Bar {
        name: name.clone(),
        figure: cell.median(),
        spread: spread(cell),
        text: cell.text(column.decimals),
    };
    let noise = table.noise.and_then(|row| column.cells.get(row));
    Some(Group {
        name: format!("PostgreSQL {major}"),
        bars: table.rows.iter().zip(&column.cells).map(bar).collect(),
        noise: noise.filter(|cell| !cell.is_empty()).map(spread),
    })
}
