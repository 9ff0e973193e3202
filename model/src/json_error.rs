//! What is wrong with some JSON, in the words of JSON and of PostgreSQL: `serde_json` speaks of Rust's types.

use serde_json::Error;
use serde_json::error::Category;

/// The message of an error in this JSON, such as `is an array; expected an integer`. A mistake in the JSON itself has its
/// place.
pub fn text(error: &Error, json: &str) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    match error.classify() {
        Category::Data => of_data(message),
        Category::Io | Category::Syntax | Category::Eof => {
            let message = message.replace("EOF while parsing", "end of the text in");
            let place = match (error.line(), characters(json, error.line(), error.column())) {
                (0, _) | (1, 0) => String::new(),
                (1, characters) => format!(" at character {characters}"),
                (line, characters) => format!(" at character {characters} of line {line}"),
            };
            format!("{}{place}", quoted(&message))
        }
    }
}

/// How many characters there are in so many bytes of a line.
fn characters(json: &str, line: usize, bytes: usize) -> usize {
    let line = json.split('\n').nth(line.saturating_sub(1));
    let starts = line.into_iter().flat_map(str::char_indices);
    starts.take_while(|(start, _)| *start < bytes).count()
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
            _ => found
                .strip_prefix("string ")
                .map_or_else(|| found.to_string(), unescaped),
        },
    }
}

/// A string as it was before serde wrote it as Rust does, which escapes much that is not ASCII.
fn unescaped(debug: &str) -> String {
    let (mut text, mut chars) = (String::new(), debug.chars());
    while let Some(char) = chars.next() {
        text.extend(match (char, chars.clone().next()) {
            ('\\', Some('u')) => {
                let code: String = chars.by_ref().take_while(|char| *char != '}').collect();
                let code = u32::from_str_radix(code.trim_start_matches("u{"), 16);
                code.ok().and_then(char::from_u32)
            }
            ('\\', Some(escaped)) => {
                chars.next();
                Some(match escaped {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    '0' => '\0',
                    itself => itself,
                })
            }
            _ => Some(char),
        });
    }
    text
}

/// serde quotes words of the grammar with backticks.
fn quoted(message: &str) -> String {
    message.replace('`', "\"")
}
