//! Transactions as etcd's JSON gateway takes them: `POST /v3/kv/txn`. Keys and values are in base64, numbers of 64 bits
//! are strings, and fields that are empty or false are left out.
//!
//! Source: etcd's `api/etcdserverpb/rpc.proto`; tried with etcd 3.4.

use super::transaction::{Answer, Compare, Operation, Outcome, Row, Transaction};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

/// The body of a request.
pub fn encode(transaction: &Transaction) -> String {
    request(transaction).to_string()
}

fn request(transaction: &Transaction) -> Value {
    let compare = transaction.compare.iter().map(comparison);
    let operations = |list: &[Operation]| list.iter().map(operation).collect::<Vec<_>>();
    json!({
        "compare": compare.collect::<Vec<_>>(),
        "success": operations(&transaction.success),
        "failure": operations(&transaction.failure),
    })
}

fn comparison(compare: &Compare) -> Value {
    match compare {
        Compare::CreatedAt(key, revision) => json!({
            "key": encoded(key), "target": "CREATE", "result": "EQUAL", "create_revision": revision.to_string(),
        }),
        Compare::ModifiedAt(key, revision) => json!({
            "key": encoded(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string(),
        }),
        Compare::UnmodifiedSince(prefix, revision) => json!({
            "key": encoded(prefix), "range_end": end_of(prefix),
            "target": "MOD", "result": "LESS", "mod_revision": (revision + 1).to_string(),
        }),
    }
}

fn operation(operation: &Operation) -> Value {
    match operation {
        Operation::Put(key, value) => {
            json!({"request_put": {"key": encoded(key), "value": encoded(value)}})
        }
        Operation::Delete(key) => json!({"request_delete_range": {"key": encoded(key)}}),
        Operation::Range(prefix) => {
            json!({"request_range": {"key": encoded(prefix), "range_end": end_of(prefix)}})
        }
        Operation::Keys { from, prefix, most } => json!({"request_range": {
            "key": encoded(from), "range_end": end_of(prefix), "limit": most.to_string(), "keys_only": true,
        }}),
        Operation::Transaction(inner) => json!({"request_txn": request(inner)}),
    }
}

fn encoded(text: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(text)
}

/// The first key after all that begin with this prefix.
fn end_of(prefix: &str) -> String {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of UTF-8 is 255.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    encoded(end)
}

/// Reads the body of an answer. The error says what is wrong with it.
pub fn decode(body: &str) -> Result<Answer, String> {
    let response: Response =
        serde_json::from_str(body).map_err(|why| format!("etcd's answer cannot be read: {why}"))?;
    let revision = response.header.revision.as_deref();
    let revision = revision.ok_or("etcd's answer has no revision")?;
    answer(&response, number(revision)?)
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    header: Header,
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<OneResponse>,
}

#[derive(Default, Deserialize)]
struct Header {
    /// None in what belongs to a transaction within another.
    revision: Option<String>,
}

#[derive(Deserialize)]
struct OneResponse {
    response_range: Option<RangeResponse>,
    response_txn: Option<Response>,
}

#[derive(Deserialize)]
struct RangeResponse {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    create_revision: String,
    mod_revision: String,
}

fn answer(response: &Response, revision: i64) -> Result<Answer, String> {
    let result = |one: &OneResponse| match (&one.response_range, &one.response_txn) {
        (Some(range), _) => {
            let rows = range.kvs.iter().map(row);
            Ok(Outcome::Range(rows.collect::<Result<_, _>>()?))
        }
        (_, Some(inner)) => Ok(Outcome::Transaction(answer(inner, revision)?)),
        _ => Ok(Outcome::Done),
    };
    let results = response.responses.iter().map(result);
    Ok(Answer {
        succeeded: response.succeeded,
        revision,
        results: results.collect::<Result<_, String>>()?,
    })
}

fn row(row: &KeyValue) -> Result<Row, String> {
    Ok(Row {
        key: text(&row.key)?,
        value: text(&row.value)?,
        created: number(&row.create_revision)?,
        modified: number(&row.mod_revision)?,
    })
}

fn text(base64: &str) -> Result<String, String> {
    let bytes = BASE64_STANDARD.decode(base64);
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| format!("etcd's answer has a text that is none: \"{base64}\""))
}

fn number(digits: &str) -> Result<i64, String> {
    let number = digits.parse();
    number.map_err(|_| format!("etcd's answer has a number that is none: \"{digits}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_written_as_the_gateway_takes_it() {
        let inner = Transaction {
            compare: vec![Compare::UnmodifiedSince("c/p/".into(), 6)],
            success: vec![Operation::Put("c/p/1".into(), "2".into())],
            failure: vec![Operation::Range("c/".into())],
        };
        let transaction = Transaction {
            compare: vec![
                Compare::CreatedAt("m/1".into(), 5),
                Compare::ModifiedAt("m/2".into(), 0),
            ],
            success: vec![
                Operation::Transaction(inner),
                Operation::Delete("w".into()),
                Operation::Keys {
                    from: "c/1".into(),
                    prefix: "c/".into(),
                    most: 9,
                },
            ],
            failure: vec![],
        };
        let expected = json!({
            "compare": [
                {"key": "bS8x", "target": "CREATE", "result": "EQUAL", "create_revision": "5"},
                {"key": "bS8y", "target": "MOD", "result": "EQUAL", "mod_revision": "0"},
            ],
            "success": [
                {"request_txn": {
                    "compare": [{
                        "key": "Yy9wLw==", "range_end": "Yy9wMA==",
                        "target": "MOD", "result": "LESS", "mod_revision": "7",
                    }],
                    "success": [{"request_put": {"key": "Yy9wLzE=", "value": "Mg=="}}],
                    "failure": [{"request_range": {"key": "Yy8=", "range_end": "YzA="}}],
                }},
                {"request_delete_range": {"key": "dw=="}},
                {"request_range": {"key": "Yy8x", "range_end": "YzA=", "limit": "9", "keys_only": true}},
            ],
            "failure": [],
        });
        let written: Value = serde_json::from_str(&encode(&transaction)).expect("JSON");
        assert_eq!(written, expected);
    }

    /// What etcd 3.4 sent: it leaves out what is empty or false.
    #[test]
    fn an_answer_is_read() {
        let body = r#"{
            "header": {"cluster_id": "14841639068965178418", "revision": "9", "raft_term": "2"},
            "succeeded": true,
            "responses": [
                {"response_range": {"header": {"revision": "9"}, "kvs": [
                    {"key": "bS8x", "create_revision": "5", "mod_revision": "8", "version": "2", "value": "Mg=="}
                ], "count": "1"}},
                {"response_range": {"header": {"revision": "9"}}},
                {"response_put": {"header": {"revision": "9"}}},
                {"response_txn": {"header": {}, "responses": [{"response_delete_range": {}}]}}
            ]
        }"#;
        let row = Row {
            key: "m/1".into(),
            value: "2".into(),
            created: 5,
            modified: 8,
        };
        let inner = Answer {
            succeeded: false,
            revision: 9,
            results: vec![Outcome::Done],
        };
        let expected = Answer {
            succeeded: true,
            revision: 9,
            results: vec![
                Outcome::Range(vec![row]),
                Outcome::Range(vec![]),
                Outcome::Done,
                Outcome::Transaction(inner),
            ],
        };
        assert_eq!(decode(body), Ok(expected));
    }

    #[test]
    fn an_answer_that_is_none_is_an_error_that_says_why() {
        let with_key = |key: &str| {
            format!(
                r#"{{"header": {{"revision": "9"}}, "responses": [{{"response_range": {{"kvs": [
                    {{"key": "{key}", "create_revision": "5", "mod_revision": "8"}}]}}}}]}}"#
            )
        };
        let cases = [
            ("<html>".to_string(), "cannot be read"),
            ("{}".to_string(), "no revision"),
            (r#"{"header": {"revision": "x"}}"#.to_string(), "\"x\""),
            (with_key("*"), "\"*\""),
            (with_key("/w=="), "\"/w==\""),
        ];
        for (body, why) in cases {
            let error = decode(&body).expect_err(&body);
            assert!(error.contains(why), "{error}");
        }
    }
}
