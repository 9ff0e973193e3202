//! tokio-postgres as a client, see with_psycopg.py: a part of the test, with pipes for its input and output.

use super::stage::Error;
use std::error::Error as _;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::time::Duration;
use tokio_postgres::NoTls;

pub fn run(port: u16, input: PipeReader, mut output: PipeWriter) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let mut lines = BufReader::new(input).lines().map_while(Result::ok);
    while let Some(what) = lines.next() {
        let mut wait = || {
            writeln!(output, "in").expect("answer");
            lines.next();
        };
        let shown = runtime.block_on(shown(port, &what, &mut wait));
        let line = serde_json::to_string(&shown).expect("JSON");
        writeln!(output, "{line}").expect("answer");
    }
}

async fn shown(port: u16, what: &str, wait: &mut impl FnMut()) -> Vec<Error> {
    let target = format!("host=127.0.0.1 port={port} user=alice dbname=postgres");
    let (client, connection) = match tokio_postgres::connect(&target, NoTls).await {
        Ok(session) => session,
        Err(error) => return vec![seen("login", &error)],
    };
    let connection = tokio::spawn(connection);
    let query = match what {
        "idle" => {
            client.batch_execute("SELECT 1").await.expect("a session");
            wait();
            while !client.is_closed() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            "SELECT 2"
        }
        "busy" => "SELECT pg_sleep(60)",
        _ => "SELECT 1",
    };
    let outcome = client.batch_execute(query).await;
    drop(client);
    let ended = connection.await.expect("the connection's task");
    let ended = ended.err().map(|error| seen("connection", &error));
    let failed = outcome.err().map(|error| seen("query", &error));
    ended.into_iter().chain(failed).collect()
}

fn seen(at: &str, error: &tokio_postgres::Error) -> Error {
    let server = error.as_db_error();
    Error {
        at: at.to_string(),
        class: if server.is_some() {
            "Error with a DbError"
        } else {
            "Error"
        }
        .to_string(),
        sqlstate: error.code().map(|code| code.code().to_string()),
        message: match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
        detail: server.and_then(|it| it.detail()).map(String::from),
        hint: server.and_then(|it| it.hint()).map(String::from),
    }
}
