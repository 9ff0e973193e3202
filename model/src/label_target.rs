//! What a label can be set on, and what its limits can be about there.

use crate::limit::Per;

/// What carries a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelTarget {
    /// A role that may log in.
    Role,
    /// A role that may not.
    Group,
    Database,
    /// The setting `cluster_limits`.
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

    pub fn default_per(self) -> Option<Per> {
        match self {
            LabelTarget::Role => Some(Per::Role),
            LabelTarget::Database => Some(Per::Database),
            LabelTarget::Group | LabelTarget::Cluster => None,
        }
    }

    /// What its limits can be kept for.
    pub fn pers(self) -> &'static [Per] {
        match self {
            LabelTarget::Role => &[Per::Role, Per::Address],
            LabelTarget::Group => &[Per::Role, Per::Address, Per::Group],
            LabelTarget::Database => &[Per::Database, Per::Role, Per::Address],
            LabelTarget::Cluster => &[Per::Role, Per::Address, Per::Database, Per::Cluster],
        }
    }

    /// A label that it can have.
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

    pub fn words(self) -> &'static str {
        match self {
            LabelTarget::Role => "a role",
            LabelTarget::Group => "a group",
            LabelTarget::Database => "a database",
            LabelTarget::Cluster => "the cluster",
        }
    }
}
