//! What is wrong with some JSON, in the words of JSON and of PostgreSQL: `serde_json` speaks of Rust's types.

use serde_json::Error;
use serde_json::error::Category;

/// The message of an error, such as `is an array; expected an integer`. A mistake in the JSON itself has its place.
pub fn text(error: &Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    match error.classify() {
        Category::Data => of_data(message),
        Category::Io | Category::Syntax | Category::Eof => {
            let message = message.replace("EOF while parsing", "end of the text in");
            let place = match (error.line(), error.column()) {
                (0, _) | (1, 0) => String::new(),
                (1, column) => format!(" at character {column}"),
                (line, column) => format!(" at character {column} of line {line}"),
            };
            format!("{}{place}", quoted(&message))
        }
    }
}

/// The JSON is right, but not what is expected.
fn of_data(message: &str) -> String {
    let wrong = ["invalid type: ", "invalid value: "];
    let found = wrong.iter().find_map(|wrong| message.strip_prefix(wrong));
    // What was found may cite any text, what is expected cites none.
    match found.and_then(|found| found.rsplit_once(", expected ")) {
        Some((found, expected)) => {
            let expected = match expected {
                "a map" => "an object",
                "a sequence" => "an array",
                "a boolean" => "true or false",
                other => other,
            };
            format!("is {}; expected {}", value(found), quoted(expected))
        }
        None => quoted(&message.replace("unknown variant", "unknown value")),
    }
}

/// A value as serde names it, such as ``integer `5` ``, `map` or `string "x"`.
fn value(found: &str) -> String {
    match found {
        "map" => "an object".to_string(),
        "sequence" => "an array".to_string(),
        "null" => "null".to_string(),
        _ => match found.split_once('`') {
            Some((_, number)) if !found.starts_with("string") => {
                number.trim_end_matches('`').to_string()
            }
            _ => found.strip_prefix("string ").unwrap_or(found).to_string(),
        },
    }
}

/// serde quotes words of the grammar with backticks.
fn quoted(message: &str) -> String {
    message.replace('`', "\"")
}
