//! What is wrong is said when the client is made, by the name of the setting.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use session_limit_servers::{Config, Etcd};
use std::path::{Path, PathBuf};
use std::{env, fs, process};

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n";

/// A folder of this name, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = env::temp_dir().join(format!("session_limit.{name}.{}", process::id()));
        fs::create_dir_all(&folder).expect("create a folder");
        Folder(folder)
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).expect("write a file");
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wrong(config: Config) -> (&'static str, String) {
    let why = Etcd::new(&config).err().expect("an error");
    assert!(why.to_string().starts_with(why.setting));
    (why.setting, why.reason)
}

fn with(endpoints: &[&str]) -> Config {
    Config {
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        timeout: 1000,
        ..Config::default()
    }
}

#[test]
fn endpoints() {
    for good in ["http://a:2379", " http://10.0.0.1:1 ", "http://[::1]:2379"] {
        let etcd = Etcd::new(&with(&[good]));
        let shown = etcd
            .unwrap_or_else(|why| panic!("{good}: {why}"))
            .endpoint();
        assert_eq!(shown, good.trim());
    }
    for bad in [
        "",
        "a:2379",
        "a",
        "://a",
        "ftp://a",
        "http://",
        "http://a:",
        "http://a:0",
        "http://a:66000",
        "http://a:b",
        "http://a:1/",
        "http://a:1/v3",
        "http://a:1/a:1",
        "http://a:1?b",
        "http://a:1#b",
        "http://u:secret@a:1",
        "http://ä:1",
        "http://a b:1",
        "https://a..b:1",
        "http://a:1, http://b:1",
    ] {
        let mut config = with(&["http://good:1", bad]);
        config.ca_file = "/nowhere".to_string();
        let (setting, reason) = wrong(config);
        assert_eq!(setting, "endpoints", "{bad}");
        assert!(!reason.contains("secret"), "{reason}");
    }
    for (bad, why) in [
        ("http://a", "must have a port, such as etcd's 2379"),
        ("http://[::1]", "must have a port, such as etcd's 2379"),
        ("http://a:1/", "must have no path"),
    ] {
        let reason = format!("\"{bad}\": {why}");
        assert_eq!(wrong(with(&[bad])), ("endpoints", reason));
    }
    assert_eq!(wrong(with(&[])), ("endpoints", "there is none".to_string()));
}

#[test]
fn what_belongs_together() {
    let set = |change: fn(&mut Config)| {
        let mut config = with(&["http://a:2379"]);
        change(&mut config);
        let (setting, reason) = wrong(config);
        format!("{setting}: {reason}")
    };
    assert_eq!(wrong(with(&["https://a:2379"])).0, "ca_file");
    assert_eq!(
        set(|config| config.cert_file = "a".to_string()),
        "key_file: must be set, as etcd_cert_file is"
    );
    assert_eq!(
        set(|config| config.key_file = "a".to_string()),
        "cert_file: must be set, as etcd_key_file is"
    );
    assert_eq!(
        set(|config| config.user = "a".to_string()),
        "password_file: must be set, as etcd_user is"
    );
    assert_eq!(
        set(|config| config.password = "a".to_string()),
        "user: must be set, as etcd_password_file is"
    );
    assert_eq!(
        set(|config| config.timeout = 0),
        "timeout: must be more than 0"
    );
}

#[test]
fn files() {
    let folder = Folder::new("files");
    let [one, other] = [0, 1].map(|_| {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        (cert.pem(), signing_key.serialize_pem())
    });
    let certificate = folder.file("certificate", &one.0);
    let key = folder.file("key", &one.1);
    let other_key = folder.file("other_key", &other.1);
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let bad = [
        ("missing", folder.path("nowhere")),
        ("a folder", folder.0.display().to_string()),
        ("never ends", "/dev/zero".to_string()),
        ("a zero in its name", "a\0b".to_string()),
        ("empty", folder.file("empty", "")),
        ("garbage", folder.file("garbage", "garbage\n")),
        (
            "no base64",
            folder.file(
                "no_base64",
                &format!("{CERTIFICATE}\u{1}!\n-----END CERTIFICATE-----\n"),
            ),
        ),
        (
            "no end",
            folder.file("no_end", &format!("{CERTIFICATE}AAAA\n")),
        ),
        ("encrypted", folder.file("encrypted", encrypted)),
    ];
    let not_der = folder.file(
        "not_der",
        &format!("{CERTIFICATE}AAAA\n-----END CERTIFICATE-----\n"),
    );
    let try_files = |ca: &str, certificate: &str, key: &str| {
        let mut config = with(&["https://localhost:2379"]);
        config.ca_file = ca.to_string();
        config.cert_file = certificate.to_string();
        config.key_file = key.to_string();
        config
    };
    for (what, file) in &bad {
        for (setting, config) in [
            ("ca_file", try_files(file, &certificate, &key)),
            ("cert_file", try_files(&certificate, file, &key)),
            ("key_file", try_files(&certificate, &certificate, file)),
        ] {
            let (named, reason) = wrong(config);
            assert_eq!(named, setting, "{what}: {reason}");
            assert!(reason.contains(file.as_str()), "{what}: {reason}");
        }
    }
    assert_eq!(wrong(try_files(&not_der, "", "")).0, "ca_file");
    assert_eq!(wrong(try_files(&certificate, &not_der, &key)).0, "key_file");
    assert_eq!(
        wrong(try_files(&certificate, &certificate, &other_key)).0,
        "key_file"
    );
    let missing = wrong(try_files("/nowhere", "", "")).1;
    assert_eq!(
        missing,
        "could not read file \"/nowhere\": No such file or directory"
    );
    // A collection may have what cannot be used, and a file both a certificate and its key.
    let two = format!("{}\n{}", fs::read_to_string(&not_der).expect("read"), one.0);
    let collection = folder.file("collection", &two);
    let both = folder.file("both", &format!("{}{}", one.1, one.0));
    assert!(Path::new(&both).exists());
    for config in [
        try_files(&collection, "", ""),
        try_files(&certificate, &both, &both),
    ] {
        assert!(Etcd::new(&config).is_ok());
    }
}
