//! What a label can be set on, and which `per` its limits can have there.

use crate::limit::Count;
use crate::per::Per;

/// What a label is set on. The setting `session_limit.cluster_limits` holds the same JSON, so it is one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelTarget {
    /// A role with LOGIN.
    Role,
    /// A role without LOGIN: its limits are about its members.
    Group,
    Database,
    /// The setting `session_limit.cluster_limits`.
    Cluster,
}

impl LabelTarget {
    pub fn of_role(can_login: bool) -> LabelTarget {
        if can_login {
            LabelTarget::Role
        } else {
            LabelTarget::Group
        }
    }

    /// The `per` of a limit that gives none; None if it must give one.
    pub fn default_per(self) -> Option<Per> {
        match self {
            LabelTarget::Role => Some(Per::Role),
            LabelTarget::Database => Some(Per::Database),
            LabelTarget::Group | LabelTarget::Cluster => None,
        }
    }

    /// The `per` that its limits can have.
    pub fn pers(self) -> &'static [Per] {
        match self {
            LabelTarget::Role => &[
                Per::Role,
                Per::Address,
                Per::RoleDatabase,
                Per::RoleAddress,
                Per::RoleDatabaseAddress,
            ],
            LabelTarget::Group => &[
                Per::Role,
                Per::Address,
                Per::Group,
                Per::RoleDatabase,
                Per::RoleAddress,
                Per::RoleDatabaseAddress,
            ],
            LabelTarget::Database => &[
                Per::Database,
                Per::Role,
                Per::Address,
                Per::RoleDatabase,
                Per::RoleAddress,
                Per::DatabaseAddress,
                Per::RoleDatabaseAddress,
            ],
            LabelTarget::Cluster => &[
                Per::Role,
                Per::Address,
                Per::Database,
                Per::Cluster,
                Per::RoleDatabase,
                Per::RoleAddress,
                Per::DatabaseAddress,
                Per::RoleDatabaseAddress,
            ],
        }
    }

    /// Whether its limits can have these.
    pub fn allows(self, per: Per, count: Count) -> bool {
        self.pers().contains(&per) && self.single(per, count).is_none()
    }

    /// What there is only one of in each count of a limit with this `per`, though that is what it counts.
    pub fn single(self, per: Per, count: Count) -> Option<&'static str> {
        let of_one_role = match self {
            LabelTarget::Role => true,
            LabelTarget::Group => per != Per::Group,
            LabelTarget::Database | LabelTarget::Cluster => per.has_role(),
        };
        match count {
            Count::Sessions => None,
            Count::Roles => of_one_role.then_some("role"),
            Count::Addresses => per.has_address().then_some("client address"),
        }
    }

    /// A valid label, for hints.
    pub fn example(self) -> &'static str {
        match self {
            LabelTarget::Role => {
                r#"{"limits": [{"max": 3}, {"max": 1, "per": "address"}, {"max": 2, "database": "app"}, {"max": 1, "network": "10.0.0.0/8"}], "max_wait": "5s"}"#
            }
            LabelTarget::Group => {
                r#"{"limits": [{"max": 20, "per": "group"}, {"max": 2, "per": "role"}]}"#
            }
            LabelTarget::Database => {
                r#"{"limits": [{"max": 100}, {"max": 5, "per": "role"}, {"max": 10, "per": "address"}]}"#
            }
            LabelTarget::Cluster => {
                r#"{"limits": [{"max": 3, "per": "role"}, {"max": 10, "per": "address"}, {"max": 50, "per": "database"}]}"#
            }
        }
    }

    /// These in words, such as `"role" or "address"`.
    pub fn choices(self) -> String {
        let words: Vec<String> = self.pers().iter().map(|per| per.json()).collect();
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }

    /// What it is called in a message.
    pub fn words(self) -> &'static str {
        match self {
            LabelTarget::Role => "a role",
            LabelTarget::Group => "a group",
            LabelTarget::Database => "a database",
            LabelTarget::Cluster => "the cluster",
        }
    }
}
