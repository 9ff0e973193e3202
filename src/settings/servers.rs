//! The settings for limits that count over several servers.

use super::milliseconds;
use model::servers::place::OnUnreachable;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::CString;
use std::time::Duration;

/// What a limit across servers does while etcd cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub enum OnUnreachableSetting {
    #[name = c"local"]
    Local,
    #[name = c"refuse"]
    Refuse,
}

static ETCD_ENDPOINTS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ETCD_PREFIX: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"/session_limit/"));
static ETCD_CA_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ETCD_CERT_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ETCD_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ETCD_USER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ETCD_PASSWORD_FILE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c""));
static ETCD_TIMEOUT_MS: GucSetting<i32> = GucSetting::<i32>::new(1000);
static SERVER_TIMEOUT_MS: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static SERVER_NAME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ON_UNREACHABLE: GucSetting<OnUnreachableSetting> =
    GucSetting::<OnUnreachableSetting>::new(OnUnreachableSetting::Local);

/// How etcd is reached.
pub struct EtcdSettings {
    /// Separated by commas.
    endpoints: String,
    pub prefix: String,
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
    pub user: String,
    pub password_file: String,
    pub timeout: Duration,
}

impl EtcdSettings {
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        let endpoints = self.endpoints.split(',').map(str::trim);
        endpoints.filter(|endpoint| !endpoint.is_empty())
    }
}

/// Whether servers share limits at all. No process changes it.
pub fn are_shared() -> bool {
    !text(&ETCD_ENDPOINTS).is_empty()
}

pub fn etcd() -> EtcdSettings {
    EtcdSettings {
        endpoints: text(&ETCD_ENDPOINTS),
        prefix: text(&ETCD_PREFIX),
        ca_file: text(&ETCD_CA_FILE),
        cert_file: text(&ETCD_CERT_FILE),
        key_file: text(&ETCD_KEY_FILE),
        user: text(&ETCD_USER),
        password_file: text(&ETCD_PASSWORD_FILE),
        timeout: etcd_timeout(),
    }
}

/// For so long a login waits for an answer of etcd.
pub fn etcd_timeout() -> Duration {
    milliseconds(&ETCD_TIMEOUT_MS)
}

/// After so long without a sign of life a server is gone.
pub fn server_timeout() -> Duration {
    milliseconds(&SERVER_TIMEOUT_MS)
}

/// What others call this server; empty: it is not said.
pub fn server_name() -> String {
    text(&SERVER_NAME)
}

pub fn on_unreachable() -> OnUnreachable {
    match ON_UNREACHABLE.get() {
        OnUnreachableSetting::Local => OnUnreachable::Local,
        OnUnreachableSetting::Refuse => OnUnreachable::Refuse,
    }
}

fn text(setting: &GucSetting<Option<CString>>) -> String {
    let value = setting.get().unwrap_or_default();
    value.to_string_lossy().trim().to_string()
}

pub fn define() {
    GucRegistry::define_string_guc(
        c"session_limit.etcd_endpoints",
        c"Sets the addresses of the etcd in which servers share limits.",
        c"A list such as \"https://a:2379,https://b:2379\". If empty, no limit counts across servers.",
        &ETCD_ENDPOINTS,
        GucContext::Postmaster,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"session_limit.etcd_prefix",
        c"Sets the prefix of all keys in etcd.",
        c"Servers with the same prefix count together.",
        &ETCD_PREFIX,
        GucContext::Postmaster,
        GucFlags::SUPERUSER_ONLY,
    );
    let files = [
        (
            c"session_limit.etcd_ca_file",
            c"Sets the file with the certificates that etcd's are verified with.",
            &ETCD_CA_FILE,
        ),
        (
            c"session_limit.etcd_cert_file",
            c"Sets the file with the certificate that this server shows to etcd.",
            &ETCD_CERT_FILE,
        ),
        (
            c"session_limit.etcd_key_file",
            c"Sets the file with the key of that certificate.",
            &ETCD_KEY_FILE,
        ),
        (
            c"session_limit.etcd_password_file",
            c"Sets the file with the password of session_limit.etcd_user.",
            &ETCD_PASSWORD_FILE,
        ),
    ];
    for (name, what, setting) in files {
        GucRegistry::define_string_guc(
            name,
            what,
            c"A relative path is relative to the data directory.",
            setting,
            GucContext::Sighup,
            GucFlags::SUPERUSER_ONLY,
        );
    }
    GucRegistry::define_string_guc(
        c"session_limit.etcd_user",
        c"Sets the user as whom this server logs in to etcd.",
        c"If empty, it does not log in.",
        &ETCD_USER,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"session_limit.etcd_timeout",
        c"Sets how long a login waits for an answer of etcd.",
        c"Then session_limit.on_unreachable says what happens.",
        &ETCD_TIMEOUT_MS,
        10,
        60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"session_limit.server_timeout",
        c"Sets after how long without a sign of life the places of a server are free for others.",
        c"Must be the same on all servers.",
        &SERVER_TIMEOUT_MS,
        3000,
        600_000,
        GucContext::Postmaster,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_string_guc(
        c"session_limit.server_name",
        c"Sets what other servers call this one.",
        c"If empty, it is cluster_name if no other server has the same, else host name and port.",
        &SERVER_NAME,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"session_limit.on_unreachable",
        c"Sets what limits across servers do while etcd cannot be reached.",
        c"\"local\": each server lets in as many as if the limit were its own; \"refuse\": only whoever finds a place that the server holds.",
        &ON_UNREACHABLE,
        GucContext::Sighup,
        GucFlags::default(),
    );
}
