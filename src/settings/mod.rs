//! The settings. Defined by the postmaster; every one but `max_events` and `max_seats` can be changed by reload.

pub mod servers;

use crate::error;
use crate::pg::{backend, memory};
use model::encoding;
use model::event::EventSet;
use model::label::{Label, MAX_SESSIONS, MAX_WAIT as LONGEST_WAIT};
use model::label_target::LabelTarget;
use model::limit::OnExcess;
use model::precedence::Defaults;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum, pg_sys};
use std::ffi::{CStr, CString, c_char, c_void};
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{UnwindSafe, catch_unwind};
use std::time::Duration;

/// What a value of a setting takes while it is read, in bytes for each of its own: more than the largest, a list of limits.
const MEMORY_A_BYTE: usize = 1000;

/// What a limit does.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum Enforcement {
    #[name = c"on"]
    On,
    /// A dry run: decide, log the decision, admit all the same.
    #[name = c"log"]
    Log,
    /// Count sessions, and decide nothing.
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

/// What happens to a login over a limit, once it has waited.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum OnExcessSetting {
    #[name = c"refuse"]
    Refuse,
    #[name = c"replace_oldest"]
    ReplaceOldest,
    #[name = c"replace_idle"]
    ReplaceIdle,
}

/// What the sweep does about sessions over a limit that was lowered, or set, after they came.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum SweepSetting {
    #[name = c"off"]
    Off,
    /// Say so.
    #[name = c"log"]
    Log,
    #[name = c"terminate"]
    Terminate,
}

static ENFORCEMENT: GucSetting<Enforcement> = GucSetting::<Enforcement>::new(Enforcement::On);
static MAX_SESSIONS_PER_ROLE: GucSetting<i32> = GucSetting::<i32>::new(-1);
static CLUSTER_LIMITS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static MAX_WAIT_MS: GucSetting<i32> = GucSetting::<i32>::new(100);
static MAX_LABEL_WAIT_MS: GucSetting<i32> = GucSetting::<i32>::new(5000);
static MAX_WAITERS: GucSetting<i32> = GucSetting::<i32>::new(20);
static ON_EXCESS: GucSetting<OnExcessSetting> =
    GucSetting::<OnExcessSetting>::new(OnExcessSetting::Refuse);
static REPLACE_MIN_AGE_MS: GucSetting<i32> = GucSetting::<i32>::new(1000);
static REPLACE_IDLE_AFTER_MS: GucSetting<i32> = GucSetting::<i32>::new(300_000);
static EXEMPT_SUPERUSERS: GucSetting<ExemptSuperusers> =
    GucSetting::<ExemptSuperusers>::new(ExemptSuperusers::On);
static EXEMPT_REPLICATION: GucSetting<bool> = GucSetting::<bool>::new(true);
static IPV6_PREFIX_LENGTH: GucSetting<i32> = GucSetting::<i32>::new(128);
static SWEEP: GucSetting<SweepSetting> = GucSetting::<SweepSetting>::new(SweepSetting::Log);
static SWEEP_INTERVAL_MS: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static REFUSAL_HINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static LOG_EVENTS: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"excess"));
static MAX_EVENTS: GucSetting<i32> = GucSetting::<i32>::new(1000);
static MAX_SEATS: GucSetting<i32> = GucSetting::<i32>::new(1000);

/// The values of the settings at one moment.
#[derive(Clone, Copy)]
pub struct Settings {
    pub enforcement: Enforcement,
    pub max_wait: Duration,
    /// The longest that a label may let logins wait unless a superuser sets it; None: it has no bound.
    pub max_label_wait: Option<Duration>,
    pub max_waiters: u32,
    pub replace_min_age: Duration,
    pub replace_idle_after: Duration,
    pub exempt_superusers: ExemptSuperusers,
    pub exempt_replication: bool,
    pub sweep: SweepSetting,
    pub sweep_interval: Duration,
}

impl Settings {
    /// Whether such a login is never refused. An exempt superuser is counted, an exempt walsender is not.
    pub fn exempts(&self, superuser: bool, address: Option<IpAddr>, walsender: bool) -> bool {
        let superusers = match self.exempt_superusers {
            ExemptSuperusers::On => true,
            ExemptSuperusers::Local => address.is_none(),
            ExemptSuperusers::Off => false,
        };
        (superuser && superusers) || (walsender && self.exempt_replication)
    }

    /// Whether a role is never refused, wherever its logins come from.
    pub fn exempts_everywhere(&self, superuser: bool) -> bool {
        // An address is given, so `local` does not exempt.
        self.exempts(superuser, Some(Ipv4Addr::UNSPECIFIED.into()), false)
    }
}

pub fn current() -> Settings {
    Settings {
        enforcement: ENFORCEMENT.get(),
        max_wait: milliseconds(&MAX_WAIT_MS),
        max_label_wait: max_label_wait(),
        max_waiters: MAX_WAITERS.get() as u32,
        replace_min_age: milliseconds(&REPLACE_MIN_AGE_MS),
        replace_idle_after: milliseconds(&REPLACE_IDLE_AFTER_MS),
        exempt_superusers: EXEMPT_SUPERUSERS.get(),
        exempt_replication: EXEMPT_REPLICATION.get(),
        sweep: SWEEP.get(),
        sweep_interval: milliseconds(&SWEEP_INTERVAL_MS),
    }
}

/// The settings that are limits, or say what a limit does.
pub fn defaults() -> Defaults {
    let cluster_limits = CLUSTER_LIMITS.get().unwrap_or_default();
    Defaults {
        cluster_limits: cluster_label(&cluster_limits).unwrap_or_default(),
        max_sessions_per_role: MAX_SESSIONS_PER_ROLE.get(),
        on_excess: match ON_EXCESS.get() {
            OnExcessSetting::Refuse => OnExcess::Refuse,
            OnExcessSetting::ReplaceOldest => OnExcess::ReplaceOldest,
            OnExcessSetting::ReplaceIdle => OnExcess::ReplaceIdle,
        },
        max_wait: milliseconds(&MAX_WAIT_MS),
        ipv6_prefix_length: IPV6_PREFIX_LENGTH.get() as u8,
        dry_run: ENFORCEMENT.get() != Enforcement::On,
    }
}

/// What everyone may wait is nothing special.
fn max_label_wait() -> Option<Duration> {
    let is_bounded = MAX_LABEL_WAIT_MS.get() >= 0;
    is_bounded.then(|| milliseconds(&MAX_LABEL_WAIT_MS).max(milliseconds(&MAX_WAIT_MS)))
}

/// For settings that are not negative.
fn milliseconds(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get() as u64)
}

/// The value of `cluster_limits`; empty, it sets none.
fn cluster_label(json: &CStr) -> Result<Label, String> {
    match json.to_bytes() {
        b"" => Ok(Label::default()),
        json => Label::check(json, LabelTarget::Cluster),
    }
}

/// Runs wherever the setting could change, also in the postmaster, which an error would stop at a reload: so it returns
/// false and raises nothing. At start, however, false would mean a warning and a server without the limits: there it
/// stops the server.
unsafe extern "C-unwind" fn session_limit_check_cluster_limits(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server passes the new value, which ends with a zero byte.
    let json = unsafe { CStr::from_ptr(*value) };
    match without_panic(json, || cluster_label(json)) {
        Ok(_) => true,
        Err(why) if backend::is_preloading() => {
            error::cannot_start(json, &why, LabelTarget::Cluster)
        }
        Err(why) => {
            error::bad_setting(&why, LabelTarget::Cluster);
            false
        }
    }
}

/// An error in a check hook would stop the server: a panic, or too little memory, is an error of the value instead.
fn without_panic<T>(
    value: &CStr,
    check: impl FnOnce() -> Result<T, String> + UnwindSafe,
) -> Result<T, String> {
    if !memory::is_there(value.count_bytes().saturating_mul(MEMORY_A_BYTE)) {
        return Err("out of memory".to_string());
    }
    catch_unwind(check).unwrap_or_else(|_| Err("could not be checked".to_string()))
}

/// The text that replaces the HINT of a refusal.
pub fn refusal_hint() -> Option<CString> {
    REFUSAL_HINT.get().filter(|hint| !hint.is_empty())
}

/// Which events the server log has.
pub fn log_events() -> EventSet {
    let list = LOG_EVENTS.get().unwrap_or_default();
    event_set(&list).unwrap_or_else(|_| EventSet::excess())
}

fn event_set(list: &CStr) -> Result<EventSet, String> {
    EventSet::read(&encoding::text(list.to_bytes()))
}

/// As for `cluster_limits`, but a wrong list at start is a warning.
unsafe extern "C-unwind" fn session_limit_check_log_events(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server passes the new value, which ends with a zero byte.
    let list = unsafe { CStr::from_ptr(*value) };
    match without_panic(list, || event_set(list)) {
        Ok(_) => true,
        Err(why) => {
            error::not_an_event(&why);
            false
        }
    }
}

/// How many events the view keeps. No process changes it.
pub fn max_events() -> usize {
    MAX_EVENTS.get() as usize
}

/// How many seats can be held at once. No process changes it.
pub fn max_seats() -> usize {
    MAX_SEATS.get() as usize
}

/// Defines the settings, and reserves their prefix, so that a misspelt name is an error and not a
/// placeholder.
pub fn define() {
    define_limits();
    define_waiting();
    define_replacing();
    define_sweep();
    define_events();
    define_seats();
    servers::define();
    // SAFETY: called by the postmaster while it preloads, as the function asks; the name is static.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"session_limit".as_ptr()) };
}

/// Limits of the whole server, and exemptions from limits.
fn define_limits() {
    GucRegistry::define_enum_guc(
        c"session_limit.enforcement",
        c"Whether logins over a limit are refused.",
        c"\"log\" decides and logs, but admits all the same; \"off\" only counts.",
        &ENFORCEMENT,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"session_limit.max_sessions_per_role",
        c"Sets the maximum number of concurrent sessions of a role without a limit of its own.",
        c"-1 means no limit.",
        &MAX_SESSIONS_PER_ROLE,
        -1,
        MAX_SESSIONS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    // SAFETY: the hook raises nothing, and does not panic.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"session_limit.cluster_limits",
            c"Sets limits on the sessions of each role, address or database, or of all together.",
            c"JSON, as in a security label.",
            &CLUSTER_LIMITS,
            GucContext::Sighup,
            GucFlags::default(),
            Some(session_limit_check_cluster_limits),
            None,
            None,
        );
    }
    GucRegistry::define_int_guc(
        c"session_limit.ipv6_prefix_length",
        c"Sets how many leading bits of a client's IPv6 address are its address to a limit.",
        c"128 is the whole address; with 64 all addresses of a host with privacy extensions are one. IPv4 addresses are always whole.",
        &IPV6_PREFIX_LENGTH,
        1,
        128,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"session_limit.exempt_superusers",
        c"Whether superusers are counted, but never refused.",
        c"\"local\" exempts only those who connect over a Unix-domain socket.",
        &EXEMPT_SUPERUSERS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"session_limit.exempt_replication",
        c"Whether WAL senders are neither counted nor refused.",
        c"If off, they are sessions like others.",
        &EXEMPT_REPLICATION,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// How a login over a limit waits.
fn define_waiting() {
    GucRegistry::define_int_guc(
        c"session_limit.max_wait",
        c"Sets how long a login over a limit waits for room before on_excess happens.",
        c"0 is at once. No login waits beyond authentication_timeout.",
        &MAX_WAIT_MS,
        0,
        LONGEST_WAIT.as_millis() as i32,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"session_limit.max_label_wait",
        c"Sets the longest max_wait of a label that is not set by a superuser.",
        c"Never less than session_limit.max_wait. -1 means no bound.",
        &MAX_LABEL_WAIT_MS,
        -1,
        LONGEST_WAIT.as_millis() as i32,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"session_limit.max_waiters",
        c"Sets how many logins may wait for room at once, a quarter of them for one role.",
        c"The next login over a limit is decided at once.",
        &MAX_WAITERS,
        0,
        MAX_SESSIONS,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// What happens to a login that has waited and found no room.
fn define_replacing() {
    GucRegistry::define_enum_guc(
        c"session_limit.on_excess",
        c"Sets what happens to a login over a limit.",
        c"\"replace_oldest\" and \"replace_idle\" end a session of the same role, and admit the login when it is gone.",
        &ON_EXCESS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"session_limit.replace_min_age",
        c"Sets how old a session must be to be replaced.",
        c"So that two clients that connect again whenever they are replaced cannot end each other in a circle.",
        &REPLACE_MIN_AGE_MS,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"session_limit.replace_idle_after",
        c"Sets how long a session must have been idle to be replaced by \"replace_idle\".",
        c"A session in a transaction is not idle.",
        &REPLACE_IDLE_AFTER_MS,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_string_guc(
        c"session_limit.refusal_hint",
        c"Sets the hint that a refused client is shown, such as whom to ask.",
        c"If empty, the hint says what to do.",
        &REFUSAL_HINT,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// What the worker does.
fn define_sweep() {
    GucRegistry::define_enum_guc(
        c"session_limit.sweep",
        c"Sets what happens to sessions over a limit that was lowered, or set, after they came.",
        c"\"log\" says which limits are exceeded; \"terminate\" ends the excess.",
        &SWEEP,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"session_limit.sweep_interval",
        c"Sets how often the sessions are compared with the limits.",
        c"Besides, that is done whenever a limit is changed.",
        &SWEEP_INTERVAL_MS,
        1000,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
}

/// Which events are logged, and how many are kept.
fn define_events() {
    // SAFETY: the hook raises nothing, and does not panic.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"session_limit.log_events",
            c"Sets which events are logged.",
            c"A list of events, or \"none\"; \"excess\", everything that happens because of a limit; \"all\", every admission, too.",
            &LOG_EVENTS,
            GucContext::Sighup,
            // GUC_LIST_INPUT, which pgrx leaves out: ALTER SYSTEM takes a list without quotes.
            GucFlags::from_bits_retain(pg_sys::GUC_LIST_INPUT as i32),
            Some(session_limit_check_log_events),
            None,
            None,
        );
    }
    GucRegistry::define_int_guc(
        c"session_limit.max_events",
        c"Sets how many events the view session_limit.events shows of logins, and how many of seats: the latest.",
        c"0 keeps none.",
        &MAX_EVENTS,
        0,
        1_000_000,
        GucContext::Postmaster,
        GucFlags::default(),
    );
}

fn define_seats() {
    GucRegistry::define_int_guc(
        c"session_limit.max_seats",
        c"Sets the maximum number of seats that are held at once.",
        c"0 switches seats off.",
        &MAX_SEATS,
        0,
        1_000_000,
        GucContext::Postmaster,
        GucFlags::default(),
    );
}
