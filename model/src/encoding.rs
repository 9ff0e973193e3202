//! Text in an encoding that nobody knows, as a `str`: a label has the encoding of the database in which it was set, and
//! its readers may have another one, or none.
//!
//! JSON is read as UTF-8. Bytes that are not UTF-8 have stand-ins there, which become these bytes again where a name is
//! compared, a label is stored, or a message is sent. The encodings of databases agree in ASCII, so this is all that
//! JSON needs.

use std::borrow::Cow;
use std::str;

/// The byte `0x80` is this character, and so on: Unicode leaves them to private use. Where they themselves are in a text,
/// their bytes have stand-ins, so that nothing else is taken for one.
const FIRST: u32 = 0x10_fe80;
const LAST: u32 = FIRST + 0x7f;

/// The text with stand-ins.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains(is_stand_in) => Cow::Borrowed(text),
        _ => Cow::Owned(with_stand_ins(bytes)),
    }
}

/// JSON with stand-ins. An error if it has the escape of a stand-in, which would be taken for a byte: so anyone could put
/// bytes into a label, and into a catalog, that are no text in any encoding.
pub fn json(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    let escapes = bytes.windows(12).any(|escape| {
        let escape = escape.to_ascii_lowercase();
        escape.starts_with(b"\\udbff\\ude")
            && matches!(escape.get(10), Some(b'8'..=b'9' | b'a'..=b'f'))
    });
    match escapes {
        true => Err("characters from \"\\udbff\\ude80\" to \"\\udbff\\udeff\" must not be written as escapes".to_string()),
        false => Ok(text(bytes)),
    }
}

fn with_stand_ins(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match is_stand_in(char) {
                true => text.extend(char.encode_utf8(&mut [0; 4]).bytes().map(stand_in)),
                false => text.push(char),
            }
        }
        text.extend(chunk.invalid().iter().copied().map(stand_in));
    }
    text
}

/// The bytes that a text is made of.
pub fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for char in text.chars() {
        match is_stand_in(char) {
            true => bytes.push((u32::from(char) - FIRST) as u8 | 0x80),
            false => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn is_stand_in(char: char) -> bool {
    (FIRST..=LAST).contains(&u32::from(char))
}

/// For a byte that is not ASCII; for another, that one.
fn stand_in(byte: u8) -> char {
    let above_ascii = byte.checked_sub(0x80).map(u32::from);
    let stand_in = above_ascii.and_then(|byte| char::from_u32(FIRST + byte));
    stand_in.unwrap_or(char::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_text_and_the_same_bytes_again() {
        let table: [&[u8]; 8] = [
            b"",
            b"plain",
            "dé, łódź, 日本, 😀".as_bytes(),
            // LATIN1, WIN1252, EUC_JP
            b"d\xe9",
            b"\x80uro",
            b"\xc6\xfc\xcb\xdc",
            // Characters that are stand-ins.
            "\u{10fe80}\u{10feff}".as_bytes(),
            b"\xe9\xf4\x8f\xba\x80\xf4",
        ];
        for bytes in table {
            assert_eq!(super::bytes(&text(bytes)), bytes);
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes(&text(&all)), all);
    }

    #[test]
    fn utf8_is_its_own_text() {
        let text = "dé, łódź, 日本, 😀, \u{10fe7f}\u{10ff00}";
        assert!(matches!(super::text(text.as_bytes()), Cow::Borrowed(same) if same == text));
    }

    #[test]
    fn nobody_can_write_a_stand_in() {
        for escape in [r"\udbff\ude80", r"\uDBFF\uDeE9", r"\udbff\udeff"] {
            assert!(
                json(format!("{{\"a\": \"b{escape}\"}}").as_bytes()).is_err(),
                "{escape}"
            );
        }
        for other in [
            r"\udbff\ude7f",
            r"\udbff\udf00",
            r"\ud83d\ude80",
            r"\udbff\ude",
            r"\u00e9",
        ] {
            assert!(json(other.as_bytes()).is_ok(), "{other}");
        }
    }

    #[test]
    fn json_keeps_them() {
        let json = b"{\"d\xe9\": \"\xa4\\\"\xff\"}";
        let text = super::json(json).expect("no escape");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(bytes(&value.to_string()), b"{\"d\xe9\":\"\xa4\\\"\xff\"}");
    }
}
