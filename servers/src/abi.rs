//! How the library is used by a program that opens it with `dlopen`; all that is unsafe here. In C:
//!
//! ```c
//! typedef struct { uint32_t kind; uint32_t status; const char *text; size_t text_len; const char *endpoint; size_t endpoint_len; } Answer;
//!
//! uint32_t session_limit_servers_version(void);
//! void *session_limit_servers_open(const char *config, size_t len, void (*no_memory)(size_t), bool (*gives_up)(void), Answer *answer);
//! void session_limit_servers_call(void *client, const char *path, size_t path_len, const char *body, size_t body_len, Answer *answer);
//! void session_limit_servers_close(void *client);
//! ```
//!
//! `open` takes the JSON of a [`Config`], and returns a client always, which is closed once, whether or not the answer's kind is
//! [`ANSWERED`]. The texts are UTF-8 and not ended by a zero; they are valid until the client's next call, or its close. One thread
//! uses a client at a time. A panic is an answer of the kind [`BROKEN`]; then the client may only be closed.
//!
//! `no_memory` is called, with the number of bytes, where an allocation fails, and must not return: it ends the process in the
//! way that the program wants. `gives_up` is called in between while a call waits for etcd: true ends the call, with [`NO_ANSWER`].
//! Both are the same for all clients: those of the first `open`.

use crate::patience::GIVES_UP;
use crate::{Config, Etcd, Failure};
use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::OnceLock;

/// Raised with every change of what is declared here; compared before anything else is called.
pub const VERSION: u32 = 2;

/// `text` is etcd's answer; after `open`, empty.
pub const ANSWERED: u32 = 0;
/// `text` says why; `endpoint` which one was asked. What the request says may have been done or not.
pub const NO_ANSWER: u32 = 1;
/// `status` is HTTP's; `text` etcd's message; `endpoint` which one was asked.
pub const REFUSED: u32 = 2;
/// `text` is the end of a setting's name after `session_limit.etcd_`, a colon and what is wrong; or `configuration` and why the
/// JSON is none.
pub const BAD_CONFIG: u32 = 3;
/// `text` is what the library panicked with.
pub const BROKEN: u32 = 4;

#[repr(C)]
pub struct Answer {
    pub kind: u32,
    pub status: u32,
    pub text: *const u8,
    pub text_len: usize,
    pub endpoint: *const u8,
    pub endpoint_len: usize,
}

pub type NoMemory = extern "C" fn(usize) -> !;
pub type GivesUp = extern "C" fn() -> bool;

pub struct Client {
    /// None: the configuration was bad, or something has panicked.
    etcd: Option<Etcd>,
    text: String,
    endpoint: String,
}

#[unsafe(no_mangle)]
pub extern "C" fn session_limit_servers_version() -> u32 {
    VERSION
}

/// # Safety
/// `config` is `len` bytes, and `answer` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn session_limit_servers_open(
    config: *const u8,
    len: usize,
    no_memory: NoMemory,
    gives_up: GivesUp,
    answer: *mut Answer,
) -> *mut Client {
    let _ = NO_MEMORY.set(no_memory);
    let _ = GIVES_UP.set(gives_up);
    // SAFETY: so the caller promises.
    let config = unsafe { bytes(config, len) };
    let mut client = Box::new(Client {
        etcd: None,
        text: String::new(),
        endpoint: String::new(),
    });
    let opened = catch_unwind(|| open(config));
    let kind = match opened {
        Ok(Ok(etcd)) => {
            client.etcd = Some(etcd);
            ANSWERED
        }
        Ok(Err(why)) => {
            client.text = why;
            BAD_CONFIG
        }
        Err(panic) => {
            client.text = words(&*panic);
            BROKEN
        }
    };
    // SAFETY: so the caller promises.
    unsafe { answer.write(client.answer(kind, 0)) };
    Box::into_raw(client)
}

/// # Safety
/// `client` is of `open` and not closed, and no other thread uses it; `path` and `body` are as many bytes as is said, and `answer`
/// can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn session_limit_servers_call(
    client: *mut Client,
    path: *const u8,
    path_len: usize,
    body: *const u8,
    body_len: usize,
    answer: *mut Answer,
) {
    // SAFETY: so the caller promises.
    let (client, path, body) =
        unsafe { (&mut *client, bytes(path, path_len), bytes(body, body_len)) };
    let (kind, status) = client.call(path, body);
    // SAFETY: so the caller promises.
    unsafe { answer.write(client.answer(kind, status)) };
}

/// # Safety
/// `client` is of `open`, and nobody will use it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn session_limit_servers_close(client: *mut Client) {
    // SAFETY: so the caller promises.
    let client = unsafe { Box::from_raw(client) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(client)));
}

/// # Safety
/// As many bytes are there as is said, as long as the result is used.
unsafe fn bytes<'a>(text: *const u8, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: so the caller promises.
    unsafe { slice::from_raw_parts(text, len) }
}

fn open(config: &[u8]) -> Result<Etcd, String> {
    let config: Config =
        serde_json::from_slice(config).map_err(|error| format!("configuration: {error}"))?;
    Etcd::new(&config).map_err(|why| why.to_string())
}

impl Client {
    /// The kind of the answer and its status; its texts are in the client.
    fn call(&mut self, path: &[u8], body: &[u8]) -> (u32, u32) {
        self.endpoint.clear();
        let Some(etcd) = &mut self.etcd else {
            return (BROKEN, 0);
        };
        let called = catch_unwind(AssertUnwindSafe(|| {
            etcd.call(
                &String::from_utf8_lossy(path),
                &String::from_utf8_lossy(body),
            )
        }));
        match called {
            Ok(Ok(text)) => {
                self.text = text;
                (ANSWERED, 200)
            }
            Ok(Err(Failure::NoAnswer { endpoint, reason })) => {
                (self.endpoint, self.text) = (endpoint, reason);
                (NO_ANSWER, 0)
            }
            Ok(Err(Failure::Refused {
                endpoint,
                status,
                message,
            })) => {
                (self.endpoint, self.text) = (endpoint, message);
                (REFUSED, status.into())
            }
            Err(panic) => {
                self.etcd = None;
                self.text = words(&*panic);
                (BROKEN, 0)
            }
        }
    }

    fn answer(&self, kind: u32, status: u32) -> Answer {
        Answer {
            kind,
            status,
            text: self.text.as_ptr(),
            text_len: self.text.len(),
            endpoint: self.endpoint.as_ptr(),
            endpoint_len: self.endpoint.len(),
        }
    }
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("panic").to_string()
}

/// Where it is not set, that is where the library is linked into a program of Rust's, a failed allocation is what it is there.
static NO_MEMORY: OnceLock<NoMemory> = OnceLock::new();

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Rust's own way to fail is to abort, which takes the whole server down and up again.
fn must_be(allocated: *mut u8, size: usize) -> *mut u8 {
    match NO_MEMORY.get() {
        Some(no_memory) if allocated.is_null() => no_memory(size),
        _ => allocated,
    }
}

// SAFETY: all is the system's, which keeps the rules.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules.
        must_be(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules.
        must_be(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the rules.
        must_be(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the rules.
        unsafe { System.dealloc(block, layout) }
    }
}
