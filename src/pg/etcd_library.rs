//! The library `session_limit_servers`, which speaks with etcd. It is opened in the process that needs it, and in no other.
//!
//! Its interface is declared in C in `servers/src/abi.rs`.

use crate::pg::backend::{self, Local};
use crate::pg::memory;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_void};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// Of the interface.
static VERSION: u32 = 2;

const ANSWERED: u32 = 0;
const NO_ANSWER: u32 = 1;
const REFUSED: u32 = 2;

#[repr(C)]
struct Answer {
    kind: u32,
    status: u32,
    text: *const u8,
    text_len: usize,
    endpoint: *const u8,
    endpoint_len: usize,
}

type Version = unsafe extern "C" fn() -> u32;
type Open = unsafe extern "C" fn(
    *const u8,
    usize,
    extern "C" fn(usize) -> !,
    extern "C" fn() -> bool,
    *mut Answer,
) -> *mut c_void;
type Call = unsafe extern "C" fn(*mut c_void, *const u8, usize, *const u8, usize, *mut Answer);
type Close = unsafe extern "C" fn(*mut c_void);

/// From when on calls are given up, once the process is to end.
static END_OF_CALLS: Local<Cell<Option<Instant>>> = Local::new(Cell::new(None));
/// How long a call may still take then.
const LAST_CALL: Duration = Duration::from_millis(500);

/// The library, open until the process ends.
#[derive(Clone, Copy)]
pub struct EtcdLibrary {
    open: Open,
    call: Call,
    close: Close,
}

/// A client of etcd.
pub struct EtcdClient {
    library: EtcdLibrary,
    client: *mut c_void,
}

/// Why there is no answer.
pub struct Failure {
    pub endpoint: String,
    pub why: String,
}

/// Asked while a call waits: nobody who stops the server waits for etcd.
extern "C" fn gives_up() -> bool {
    if !backend::has_postmaster() {
        return true;
    }
    if END_OF_CALLS.get().is_none() && backend::is_to_end() {
        allow_last_call();
    }
    END_OF_CALLS.get().is_some_and(|end| Instant::now() >= end)
}

/// The process is to end. One more call may be made, if it is short.
pub fn allow_last_call() {
    END_OF_CALLS.set(Some(Instant::now() + LAST_CALL));
}

impl EtcdLibrary {
    /// Opens it from the folder that this library is in. The error says what is wrong.
    pub fn open() -> Result<EtcdLibrary, String> {
        let path = [own_folder()?.as_slice(), b"session_limit_servers.so"].concat();
        let path = CString::new(path).map_err(|_| "its path has a zero byte".to_string())?;
        // SAFETY: the library does nothing when it is opened.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(last_error());
        }
        // SAFETY: as the interface declares them.
        unsafe {
            let version: Version = symbol(handle, c"session_limit_servers_version")?;
            if version() != VERSION {
                let why = format!("it is of another version ({})", version());
                // Another may be there when it is opened again.
                libc::dlclose(handle);
                return Err(why);
            }
            Ok(EtcdLibrary {
                open: symbol(handle, c"session_limit_servers_open")?,
                call: symbol(handle, c"session_limit_servers_call")?,
                close: symbol(handle, c"session_limit_servers_close")?,
            })
        }
    }

    /// A client with this configuration, JSON. The error says what is wrong with which setting.
    pub fn client(self, configuration: &str) -> Result<EtcdClient, String> {
        let mut answer = Answer::EMPTY;
        // SAFETY: as the interface says. The client is closed when it is dropped.
        let client = unsafe {
            let (text, length) = (configuration.as_ptr(), configuration.len());
            EtcdClient {
                library: self,
                client: (self.open)(text, length, memory::end_without, gives_up, &mut answer),
            }
        };
        match answer.kind {
            ANSWERED => Ok(client),
            _ => Err(answer.text()),
        }
    }
}

impl EtcdClient {
    pub fn call(&mut self, path: &str, body: &str) -> Result<String, Failure> {
        let mut answer = Answer::EMPTY;
        // SAFETY: as the interface says; what the answer refers to is copied before the next call.
        unsafe {
            let (body, length) = (body.as_ptr(), body.len());
            (self.library.call)(
                self.client,
                path.as_ptr(),
                path.len(),
                body,
                length,
                &mut answer,
            );
        }
        let failed = |why| {
            Err(Failure {
                endpoint: answer.endpoint(),
                why,
            })
        };
        match answer.kind {
            ANSWERED => Ok(answer.text()),
            NO_ANSWER => failed(answer.text()),
            REFUSED => failed(format!("{} (HTTP status {})", answer.text(), answer.status)),
            _ => failed(format!("its client failed: {}", answer.text())),
        }
    }
}

impl Drop for EtcdClient {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        unsafe { (self.library.close)(self.client) };
    }
}

impl Answer {
    const EMPTY: Answer = Answer {
        kind: 0,
        status: 0,
        text: std::ptr::null(),
        text_len: 0,
        endpoint: std::ptr::null(),
        endpoint_len: 0,
    };

    fn text(&self) -> String {
        copied(self.text, self.text_len)
    }

    fn endpoint(&self) -> String {
        copied(self.endpoint, self.endpoint_len)
    }
}

fn copied(text: *const u8, length: usize) -> String {
    if text.is_null() || length == 0 {
        return String::new();
    }
    memory::require(length);
    // SAFETY: the library has just said that so many bytes are there.
    let bytes = unsafe { std::slice::from_raw_parts(text, length) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// The folder that this library was loaded from, with a slash at its end.
fn own_folder() -> Result<Vec<u8>, String> {
    let mut library = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address of something in this library; the name ends with a zero byte, and stays.
    let path = unsafe {
        if libc::dladdr((&raw const VERSION).cast(), library.as_mut_ptr()) == 0 {
            return Err("the folder of session_limit is not known".to_string());
        }
        CStr::from_ptr(library.assume_init().dli_fname).to_bytes()
    };
    let name = path.iter().rev().take_while(|byte| **byte != b'/').count();
    Ok(path.iter().take(path.len() - name).copied().collect())
}

/// # Safety
/// The symbol is of type `F`, a pointer to a function.
unsafe fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> Result<F, String> {
    // SAFETY: an open library.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    if symbol.is_null() {
        return Err(last_error());
    }
    // SAFETY: as the caller says.
    Ok(unsafe { std::mem::transmute_copy(&symbol) })
}

/// What the system says of a library that could not be opened.
fn last_error() -> String {
    // SAFETY: one thread; the text is copied before the next call.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return "unknown error".to_string();
    }
    // SAFETY: it ends with a zero byte.
    unsafe { CStr::from_ptr(error) }
        .to_string_lossy()
        .into_owned()
}
