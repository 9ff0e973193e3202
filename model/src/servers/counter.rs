//! The name of a count that servers share.

use crate::limit::{Names, Object, Scope, Who};
use std::fmt;

/// The longest name: a group, a database and a network, with each byte of both names encoded.
const LENGTH: usize = 464;

/// What a limit across servers counts, in names, because OIDs differ between servers: `role=alice,database=app`. It is part of
/// keys in etcd. Bytes of names that are neither letters, digits nor one of `-._` are written as `%` and two hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    length: u16,
    text: [u8; LENGTH],
}

impl Counter {
    /// Of a place that is free.
    pub const NONE: Counter = Counter {
        length: 0,
        text: [0; LENGTH],
    };

    pub fn of(scope: Scope, names: Names) -> Counter {
        let mut counter = Counter::NONE;
        let mut add = |field: &str, value: &[u8]| {
            if counter.length > 0 {
                counter.push(b",");
            }
            counter.push(field.as_bytes());
            for byte in value {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                        counter.push(&[*byte]);
                    }
                    _ => counter.push(format!("%{byte:02X}").as_bytes()),
                }
            }
        };
        match scope.who {
            Who::Anyone => {}
            Who::Role(oid) => add("role=", &names(Object::Role(oid))),
            Who::MembersOf(oid) => add("group=", &names(Object::Role(oid))),
        }
        if let Some(oid) = scope.database {
            add("database=", &names(Object::Database(oid)));
        }
        if let Some(network) = scope.network {
            add("network=", network.client().as_bytes());
        }
        if counter.length == 0 {
            counter.push(b"all");
        }
        counter
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        let free = self.text.iter_mut().skip(start);
        for (free, byte) in free.zip(bytes) {
            *free = *byte;
            self.length += 1;
        }
    }

    pub fn is_none(&self) -> bool {
        self.length == 0
    }

    pub fn text(&self) -> &str {
        let text = self.text.get(..self.length.into());
        text.and_then(|text| std::str::from_utf8(text).ok())
            .unwrap_or_default()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// As tests name roles and databases: by OID.
    pub fn by_oid(object: Object) -> Vec<u8> {
        match object {
            Object::Role(oid) | Object::Database(oid) => oid.to_string().into_bytes(),
        }
    }

    #[test]
    fn a_counter_is_named_by_its_scope() {
        let names = |object: Object| match object {
            Object::Role(_) => "al,ice=\u{e9}%".as_bytes().to_vec(),
            Object::Database(_) => b"app-1.x_Y".to_vec(),
        };
        let name = |who, database, network: Option<&str>| {
            let network = network.map(|text| text.parse().expect(text));
            let scope = Scope {
                who,
                database,
                network,
            };
            Counter::of(scope, &names).text().to_string()
        };
        let cases = [
            (name(Who::Anyone, None, None), "all"),
            (name(Who::Role(1), None, None), "role=al%2Cice%3D%C3%A9%25"),
            (
                name(Who::MembersOf(1), Some(2), None),
                "group=al%2Cice%3D%C3%A9%25,database=app-1.x_Y",
            ),
            (
                name(Who::Anyone, Some(2), Some("10.0.0.0/8")),
                "database=app-1.x_Y,network=10.0.0.0%2F8",
            ),
            (
                name(Who::Anyone, None, Some("fd00::1/128")),
                "network=fd00%3A%3A1",
            ),
        ];
        for (name, expected) in cases {
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn the_longest_counter_fits() {
        let long = |_: Object| vec![255; 63];
        let scope = Scope {
            who: Who::MembersOf(1),
            database: Some(2),
            network: Some(
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"
                    .parse()
                    .expect("a network"),
            ),
        };
        let text = Counter::of(scope, &long).text().to_string();
        assert!(text.ends_with("%2F127"), "{text}");
        assert!(text.len() <= LENGTH, "{}", text.len());
    }
}
