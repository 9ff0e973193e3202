//! The `per` of a limit, a word or a list of words: for what it keeps one count.

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// What a limit counts separately: with `per` `role`, each role has a count of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// Each role.
    Role,
    /// Each client address; in a label on a role or a group, each role and client address.
    Address,
    /// All members of the group together.
    Group,
    /// Each database.
    Database,
    /// All sessions together.
    Cluster,
    /// Lists: each combination.
    RoleDatabase,
    RoleAddress,
    DatabaseAddress,
    RoleDatabaseAddress,
}

impl Per {
    const ALL: [Per; 9] = [
        Per::Role,
        Per::Address,
        Per::Group,
        Per::Database,
        Per::Cluster,
        Per::RoleDatabase,
        Per::RoleAddress,
        Per::DatabaseAddress,
        Per::RoleDatabaseAddress,
    ];

    /// As the views and messages say it: one word, or several of a list.
    pub fn word(self) -> &'static str {
        match self {
            Per::Role => "role",
            Per::Address => "address",
            Per::Group => "group",
            Per::Database => "database",
            Per::Cluster => "cluster",
            Per::RoleDatabase => "role, database",
            Per::RoleAddress => "role, address",
            Per::DatabaseAddress => "database, address",
            Per::RoleDatabaseAddress => "role, database, address",
        }
    }

    fn words(self) -> impl Iterator<Item = &'static str> + Clone {
        self.word().split(", ")
    }

    /// As a label has it: `"role"`, `["role", "database"]`.
    pub fn json(self) -> String {
        let words: Vec<String> = self.words().map(|word| format!("\"{word}\"")).collect();
        match words.as_slice() {
            [word] => word.clone(),
            words => format!("[{}]", words.join(", ")),
        }
    }

    /// Whether each role has a count of its own because `role` is named.
    pub fn has_role(self) -> bool {
        self.words().any(|word| word == "role")
    }

    pub fn has_database(self) -> bool {
        self.words().any(|word| word == "database")
    }

    pub fn has_address(self) -> bool {
        self.words().any(|word| word == "address")
    }

    fn of_word(word: &str) -> Option<Per> {
        Per::ALL.into_iter().find(|per| per.word() == word)
    }

    /// That of a list of words, in any order; an error says which word is wrong.
    fn of_words(words: &[String]) -> Result<Per, String> {
        for (index, word) in words.iter().enumerate() {
            match Per::of_word(word) {
                Some(Per::Role | Per::Database | Per::Address) => {}
                Some(Per::Group | Per::Cluster) => {
                    return Err(format!("`{word}` is not for a list"));
                }
                _ => return Err(format!("unknown value `{word}`")),
            }
            if words.iter().take(index).any(|other| other == word) {
                return Err(format!("`{word}` is there twice"));
            }
        }
        let is_it = |per: &Per| {
            per.words().count() == words.len()
                && per.words().all(|it| words.iter().any(|w| w == it))
        };
        let named = Per::ALL.into_iter().find(is_it);
        named.ok_or_else(|| "the list is empty".to_string())
    }
}

/// A word, or a list of words.
impl Serialize for Per {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.words().count() {
            1 => serializer.serialize_str(self.word()),
            _ => serializer.collect_seq(self.words()),
        }
    }
}

impl<'de> Deserialize<'de> for Per {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Per, D::Error> {
        struct Words;

        impl<'de> Visitor<'de> for Words {
            type Value = Per;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Per, E> {
                let one = Per::of_word(word).filter(|per| per.words().count() == 1);
                one.ok_or_else(|| E::custom(format!("unknown value `{word}`")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Per, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Per::of_words(&words).map_err(de::Error::custom)
            }
        }

        value.deserialize_any(Words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_per_is_read_as_it_is_written() {
        for per in Per::ALL {
            let json = serde_json::to_string(&per).expect("JSON");
            assert_eq!(serde_json::from_str::<Per>(&json).expect(&json), per);
        }
    }
}
