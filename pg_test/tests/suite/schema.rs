//! The lines of the log as docs/reference/events.schema.json has them.

use pg_test::place;
use serde_json::Value;
use std::fs;
use std::sync::OnceLock;

pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let path = place::checkout().join("docs/reference/events.schema.json");
        let json = fs::read_to_string(path).expect("the schema");
        serde_json::from_str(&json).expect("JSON")
    })
}

/// What follows `#/$defs/`.
fn referred(schema: &Value) -> Option<&'static Value> {
    let name = schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
    Some(self::schema()["$defs"].get(name).expect(name))
}

/// The lines that the schema knows.
pub fn lines() -> impl Iterator<Item = &'static Value> {
    let lines = schema()["oneOf"].as_array().expect("oneOf").iter();
    lines.map(|line| referred(line).expect("a line"))
}

pub fn event_of(line: &Value) -> &str {
    line["properties"]["event"]["const"]
        .as_str()
        .expect("an event")
}

/// What is wrong with a value by a schema, of which it knows what ours uses.
fn misfit(schema: &Value, value: &Value) -> Option<String> {
    if let Some(schema) = referred(schema) {
        return misfit(schema, value);
    }
    let rules = schema.as_object().expect("a schema").iter();
    let mut wrong = rules.filter(|(word, rule)| !meets(schema, word, rule, value));
    wrong
        .next()
        .map(|(word, rule)| format!("{value} is against {word}: {rule}"))
}

fn meets(schema: &Value, word: &str, rule: &Value, value: &Value) -> bool {
    let number = || rule.as_u64().expect("a number");
    let length = || value.as_array().map(|list| list.len() as u64);
    match word {
        "title" => true,
        "const" => value == rule,
        "enum" => rule.as_array().expect("a list").contains(value),
        "type" => match rule.as_array() {
            Some(types) => types.iter().any(|rule| meets(schema, word, rule, value)),
            None => rule == type_of(value),
        },
        "minimum" => value.as_u64().is_some_and(|value| value >= number()),
        "minItems" => length().is_some_and(|length| length >= number()),
        "maxItems" => length().is_some_and(|length| length <= number()),
        "items" => {
            let items = value.as_array().expect("a list");
            items.iter().all(|item| misfit(rule, item).is_none())
        }
        "properties" => {
            let known = |(key, value): (&String, &Value)| {
                let rule = rule.get(key);
                rule.is_none_or(|rule| misfit(rule, value).is_none())
            };
            value
                .as_object()
                .is_some_and(|object| object.iter().all(known))
        }
        "required" => {
            let keys = rule.as_array().expect("a list").iter();
            keys.map(|key| key.as_str().expect("a key"))
                .all(|key| value.get(key).is_some())
        }
        "additionalProperties" => {
            let is_known = |key: &String| schema["properties"].get(key).is_some();
            rule == false
                && value
                    .as_object()
                    .is_some_and(|object| object.keys().all(is_known))
        }
        word => panic!("{word}: a word of the schema that this check does not know"),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A line of the log is one that the schema knows.
pub fn fits(line: &Value) {
    let misfits: Vec<String> = lines().filter_map(|it| misfit(it, line)).collect();
    assert_eq!(misfits.len() + 1, lines().count(), "{line}: {misfits:#?}");
}
