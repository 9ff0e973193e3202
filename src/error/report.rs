//! How a message reaches the user: the server's own `ereport`, because pgrx's takes neither names in any encoding nor
//! texts that the server translates.

use crate::pg::ffi;
use model::encoding;
use pgrx::pg_sys::{self, ffi::pg_guard_ffi_boundary};
use pgrx::{PgLogLevel, PgSqlErrorCode};
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::Location;
use std::str;

/// A text that the server may translate, with the string for its `%s` if it has one; or one that was composed.
pub enum Text {
    Format(&'static CStr, CString),
    Composed(CString),
}

impl Text {
    pub fn literal(text: &'static CStr) -> Text {
        Text::Format(text, CString::default())
    }

    /// With one `%s`, for a name in whatever encoding.
    pub fn about(format: &'static CStr, name: &[u8]) -> Text {
        Text::Format(format, composed(name.to_vec()))
    }

    /// A format with at most one `%s`, and the string for it.
    fn format(&self) -> (&CStr, &CStr) {
        match self {
            Text::Format(format, argument) => (format, argument),
            Text::Composed(text) => (c"%s", text),
        }
    }
}

impl From<Vec<u8>> for Text {
    fn from(text: Vec<u8>) -> Text {
        Text::Composed(composed(text))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        text.into_bytes().into()
    }
}

impl From<&'static CStr> for Text {
    fn from(text: &'static CStr) -> Text {
        Text::literal(text)
    }
}

/// A text with a zero byte in it is left out: no name has one, and `sentence` escapes it.
pub fn composed(text: Vec<u8>) -> CString {
    CString::new(text).unwrap_or_default()
}

/// A message, not sent yet.
pub struct Report {
    /// Where in the sources it was made.
    place: &'static Location<'static>,
    code: PgSqlErrorCode,
    message: Text,
    detail: Option<Text>,
    hint: Option<Text>,
}

impl Report {
    #[track_caller]
    pub fn new(code: PgSqlErrorCode, message: impl Into<Text>) -> Report {
        Report {
            place: Location::caller(),
            code,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub fn detail(self, detail: impl Into<Text>) -> Report {
        Report {
            detail: Some(detail.into()),
            ..self
        }
    }

    pub fn hint(self, hint: impl Into<Text>) -> Report {
        Report {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Tells the client of a login that it is authenticated, then that it is refused: libpq with `sslmode=prefer` takes
    /// an earlier error for a failure of TLS and tries again without.
    pub fn refuse(self) -> ! {
        // SAFETY: the hook runs where the server sends this very message, AuthenticationOk, next.
        unsafe {
            let mut message = pg_sys::StringInfoData::default();
            pg_sys::pq_beginmessage(&mut message, b'R' as c_char);
            pg_sys::pq_sendbytes(&mut message, [0u8; 4].as_ptr().cast(), 4);
            pg_sys::pq_endmessage(&mut message);
        }
        self.fatal()
    }

    /// Ends the process, without unwinding.
    pub fn fatal(self) -> ! {
        self.send(PgLogLevel::FATAL);
        unreachable!("FATAL ends the process")
    }

    /// Ends the statement.
    pub fn error(self) -> ! {
        self.send(PgLogLevel::ERROR);
        unreachable!("an error does not return")
    }

    /// A message that ends nothing: WARNING, LOG and the like.
    pub fn send(self, level: PgLogLevel) {
        // SAFETY: the server's own sequence for a message. Every text outlives it, and no format asks for more than its
        // one string. An error is passed on as a panic.
        unsafe {
            pg_guard_ffi_boundary(|| {
                if !ffi::errstart(level as c_int, std::ptr::null()) {
                    return;
                }
                ffi::errcode(self.code as c_int);
                let (format, text) = self.message.format();
                ffi::errmsg(format.as_ptr(), text.as_ptr());
                if let Some((format, text)) = self.detail.as_ref().map(Text::format) {
                    ffi::errdetail(format.as_ptr(), text.as_ptr());
                }
                if let Some((format, text)) = self.hint.as_ref().map(Text::format) {
                    ffi::errhint(format.as_ptr(), text.as_ptr());
                }
                // The server keeps no copy of them, and shows those of an error after this function is left.
                let (file, line) = (self.place.file_as_c_str(), self.place.line() as c_int);
                ffi::errfinish(file.as_ptr(), line, c"session_limit".as_ptr());
            });
        }
    }
}

/// As a DETAIL is written, of a text of [`encoding`]. It may cite anything, a zero byte, too, at which it must not end.
pub fn sentence(text: &str) -> Vec<u8> {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    let mut sentence = String::new();
    for char in first.into_iter().chain(chars).chain(['.']) {
        match char.is_control() {
            true => sentence.extend(char.escape_default()),
            false => sentence.push(char),
        }
    }
    encoding::bytes(&sentence)
}
