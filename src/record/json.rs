//! JSON for the log, the view and whoever reads them.
//!
//! JSON is Unicode. Names are bytes, usually UTF-8, and the log and each database may have another encoding. So the
//! JSON here is ASCII, which is right in all of them.

use serde::{Serialize, Serializer};
use serde_json::ser::{CompactFormatter, Formatter};
use std::io;

/// In ASCII. Nothing that is serialised here can fail.
pub fn json(value: &impl Serialize) -> Option<String> {
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Ascii(CompactFormatter));
    value.serialize(&mut serializer).ok()?;
    String::from_utf8(json).ok()
}

/// Text in an unknown encoding. Bytes that are not UTF-8 become replacement characters.
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(&self.0))
    }
}

struct Ascii(CompactFormatter);

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let is_other = |char: char| !matches!(char, ' '..='~');
        for text in fragment.split_inclusive(is_other) {
            let plain = text.trim_end_matches(is_other);
            writer.write_all(plain.as_bytes())?;
            let other = text.strip_prefix(plain).unwrap_or_default();
            for unit in other.encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}
