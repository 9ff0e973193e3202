//! The settings. Defined by the postmaster; every one can be changed by reload.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum, pg_sys};
use std::ffi::CString;
use std::time::Duration;

/// What a limit does.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum Enforcement {
    #[name = c"on"]
    On,
    /// Decide, log the decision, admit.
    #[name = c"log"]
    Log,
    /// Only count.
    #[name = c"off"]
    Off,
}

/// Which superusers are never refused.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum ExemptSuperusers {
    #[name = c"on"]
    On,
    /// Those who come over a Unix-domain socket.
    #[name = c"local"]
    Local,
    #[name = c"off"]
    Off,
}

static ENFORCEMENT: GucSetting<Enforcement> = GucSetting::<Enforcement>::new(Enforcement::On);
static MAX_SESSIONS_PER_ROLE: GucSetting<i32> = GucSetting::<i32>::new(-1);
static MAX_WAIT: GucSetting<i32> = GucSetting::<i32>::new(100);
static MAX_WAITERS: GucSetting<i32> = GucSetting::<i32>::new(20);
static EXEMPT_SUPERUSERS: GucSetting<ExemptSuperusers> =
    GucSetting::<ExemptSuperusers>::new(ExemptSuperusers::On);
static EXEMPT_REPLICATION: GucSetting<bool> = GucSetting::<bool>::new(true);
static REFUSAL_HINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// The longest `authentication_timeout`, in ms: no login can wait longer.
const MAX_AUTHENTICATION_TIMEOUT: i32 = 600_000;

/// The values of the settings at one moment.
#[derive(Clone, Copy)]
pub struct Settings {
    pub enforcement: Enforcement,
    /// Negative: no limit.
    pub max_sessions_per_role: i32,
    pub max_wait: Duration,
    pub max_waiters: u32,
    pub exempt_superusers: ExemptSuperusers,
    pub exempt_replication: bool,
}

pub fn current() -> Settings {
    Settings {
        enforcement: ENFORCEMENT.get(),
        max_sessions_per_role: MAX_SESSIONS_PER_ROLE.get(),
        max_wait: Duration::from_millis(MAX_WAIT.get() as u64),
        max_waiters: MAX_WAITERS.get() as u32,
        exempt_superusers: EXEMPT_SUPERUSERS.get(),
        exempt_replication: EXEMPT_REPLICATION.get(),
    }
}

/// The text that replaces the HINT of a refusal.
pub fn refusal_hint() -> Option<CString> {
    REFUSAL_HINT.get().filter(|hint| !hint.is_empty())
}

/// Defines the settings, and reserves their prefix, so that a misspelt name is an error and not a
/// placeholder.
pub fn define() {
    let plain = GucFlags::default();
    GucRegistry::define_enum_guc(
        c"session_limit.enforcement",
        c"Whether logins over a limit are refused.",
        c"\"log\" decides and logs, but admits all the same; \"off\" only counts.",
        &ENFORCEMENT,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_int_guc(
        c"session_limit.max_sessions_per_role",
        c"Sets the maximum number of concurrent sessions of a role without a limit of its own.",
        c"-1 means no limit.",
        &MAX_SESSIONS_PER_ROLE,
        -1,
        pg_sys::MAX_BACKENDS as i32,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_int_guc(
        c"session_limit.max_wait",
        c"Sets how long a login over a limit waits for room before it is refused.",
        c"0 refuses at once. No login waits beyond authentication_timeout.",
        &MAX_WAIT,
        0,
        MAX_AUTHENTICATION_TIMEOUT,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"session_limit.max_waiters",
        c"Sets how many logins may wait for room at once, a quarter of them for one role.",
        c"The next login over a limit is refused at once.",
        &MAX_WAITERS,
        0,
        pg_sys::MAX_BACKENDS as i32,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_enum_guc(
        c"session_limit.exempt_superusers",
        c"Whether superusers are counted, but never refused.",
        c"\"local\" exempts only those who connect over a Unix-domain socket.",
        &EXEMPT_SUPERUSERS,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_bool_guc(
        c"session_limit.exempt_replication",
        c"Whether WAL senders are neither counted nor refused.",
        c"If off, they are sessions like others.",
        &EXEMPT_REPLICATION,
        GucContext::Sighup,
        plain,
    );
    GucRegistry::define_string_guc(
        c"session_limit.refusal_hint",
        c"Sets the hint that a refused client is shown, such as whom to ask.",
        c"If empty, the hint says what to do.",
        &REFUSAL_HINT,
        GucContext::Sighup,
        plain,
    );
    // SAFETY: called by the postmaster while it preloads, as the function asks; the name is static.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"session_limit".as_ptr()) };
}
