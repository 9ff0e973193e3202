//! What decides which limits apply to a login, read from the catalogs: for the hook, and for the
//! views, which ask the same of logins that are not made.

use crate::apply::{self, Applicable, Defaults, Facts, InDatabase};
use crate::catalog::{self, Database, FEW_PAGES, LabelText, Memberships, Role};
use crate::compat;
use crate::grammar::Label;
use crate::limit::{Limit, Object, Source, Who};
use crate::replace::Idle;
use crate::sessions::{Members, Session, Unknown};
use crate::settings::{self, Enforcement, Settings};
use crate::shmem;
use crate::sweep::Applying;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// The labels, and who is a member of what.
pub struct Labels {
    texts: Texts,
    memberships: Memberships,
    /// What was found of the roles that have one and that others are members of.
    may_log_in: RefCell<BTreeMap<u32, bool>>,
}

enum Texts {
    /// All of them, as they were at one moment.
    All(Vec<(Object, LabelText)>),
    /// Each is looked up when it is asked for.
    Sought,
}

/// What a label says, or why it cannot be read.
type Text = Result<Vec<u8>, String>;

/// Something about a label that the hook met.
pub enum Trouble {
    /// It cannot be read, and why.
    Invalid(Object, String),
    /// It has fields that this version does not know.
    Unknown(Object, Vec<String>),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (object, what) = match self {
            Trouble::Invalid(object, why) => (object, format!("is invalid: {why}")),
            Trouble::Unknown(object, fields) => {
                (object, format!("has unknown fields: {}", fields.join(", ")))
            }
        };
        let label = Source::Label(*object).words(&catalog::name_of);
        write!(
            f,
            "session_limit: {} {what}",
            String::from_utf8_lossy(&label)
        )
    }
}

/// What a login would have to meet now, nothing if it is exempt, the members of the groups that count for
/// it, and what is wrong with the labels that it met.
pub fn ask(
    role: &Role,
    database: Option<&Database>,
    address: Option<IpAddr>,
    walsender: bool,
    settings: &Settings,
) -> (Applicable, Members, Vec<Trouble>) {
    let mut applicable = Applicable {
        exempt: settings.exempts(role.superuser, address, walsender),
        limits: Vec::new(),
    };
    let (mut members, mut troubles) = (Members::default(), Vec::new());
    if !applicable.exempt && settings.enforcement != Enforcement::Off {
        let (labels, defaults) = (Labels::for_login(), settings::defaults());
        let (facts, met) = labels.facts(role, database, address, &defaults);
        (applicable, troubles) = (apply::applicable(&facts), met);
        if applicable.exempt {
            applicable.limits.clear();
        }
        members = labels.members(&applicable.limits);
    }
    (applicable, members, troubles)
}

/// The label for whose sake such a login is refused, and why: for it may have been meant to be.
pub fn invalid_label<'a>(
    applicable: &Applicable,
    troubles: &'a [Trouble],
    settings: &Settings,
) -> Option<(Object, &'a str)> {
    let refuses = settings.enforcement == Enforcement::On && !applicable.exempt;
    troubles
        .iter()
        .filter(|_| refuses)
        .find_map(|trouble| match trouble {
            Trouble::Invalid(object, why) => Some((*object, why.as_str())),
            Trouble::Unknown(..) => None,
        })
}

impl Labels {
    /// All of them, as they are now.
    pub fn read() -> Labels {
        Labels::of(Texts::All(catalog::labels()))
    }

    /// For a question or two.
    pub fn sought() -> Labels {
        Labels::of(Texts::Sought)
    }

    /// For one login: the cheapest way.
    fn for_login() -> Labels {
        let at_rest = shmem::labels_at_rest();
        if at_rest.is_some_and(shmem::had_no_labels) {
            return Labels::of(Texts::All(Vec::new()));
        }
        // To a standby labels come without anybody who could say so. It is asked first, in case of a promotion
        // meanwhile.
        let is_primary = !catalog::is_standby();
        catalog::with_pages_of_labels(|pages| match pages {
            0 => {
                if is_primary {
                    at_rest.into_iter().for_each(shmem::saw_no_labels);
                }
                Labels::of(Texts::All(Vec::new()))
            }
            1..=FEW_PAGES => Labels::read(),
            _ => Labels::sought(),
        })
    }

    fn of(texts: Texts) -> Labels {
        Labels {
            texts,
            memberships: Memberships::default(),
            may_log_in: RefCell::default(),
        }
    }

    /// What decides about such a login, and what is wrong with the labels that it met.
    pub fn facts<'a>(
        &self,
        role: &Role,
        database: Option<&'a Database>,
        address: Option<IpAddr>,
        defaults: &'a Defaults,
    ) -> (Facts<'a>, Vec<Trouble>) {
        let mut troubles = Vec::new();
        let groups = self.labelled_groups(role).into_iter();
        let groups = groups.map(|(group, text)| {
            (
                group,
                parsed(Object::Role(group), Some(text), &mut troubles),
            )
        });
        let groups = groups.collect();
        let mut label = |object| self.label(object, &mut troubles);
        let facts = Facts {
            role: role.oid,
            connection_limit: role.connection_limit,
            label: label(Object::Role(role.oid)),
            groups,
            database: database.map(|database| InDatabase {
                oid: database.oid,
                name: &database.name,
                connection_limit: database.connection_limit,
                label: label(Object::Database(database.oid)),
            }),
            address,
            defaults,
        };
        (facts, troubles)
    }

    /// What the object's label says; nothing if it has none, or one that is wrong.
    pub fn label(&self, object: Object, troubles: &mut Vec<Trouble>) -> Label {
        parsed(object, self.text(object), troubles)
    }

    /// The label as it was set, or why it cannot be read.
    pub fn text(&self, object: Object) -> Option<Text> {
        let text = match &self.texts {
            Texts::Sought => catalog::label_of(object),
            Texts::All(labels) => {
                let mut labels = labels.iter();
                let label = labels.find(|(labelled, _)| *labelled == object);
                label.map(|(_, text)| text.clone())
            }
        };
        let too_long = || "it is too long to be read at login".to_string();
        text.map(|text| text.ok_or_else(too_long))
    }

    /// The groups that the role is a member of and that have a label, with its text.
    fn labelled_groups(&self, role: &Role) -> Vec<(u32, Text)> {
        if let Texts::All(labels) = &self.texts {
            let is_others = |object: &Object| match object {
                Object::Role(oid) => *oid != role.oid,
                Object::Database(_) => false,
            };
            if !labels.iter().any(|(object, _)| is_others(object)) {
                return Vec::new();
            }
        }
        let roles = role.groups(&self.memberships).into_iter();
        let labelled = roles.filter_map(|role| Some((role, self.text(Object::Role(role))?)));
        let mut labelled: Vec<_> = labelled.collect();
        self.retain_groups(&mut labelled);
        labelled
    }

    /// Also one that may log in can be granted: its label is only about itself.
    fn retain_groups(&self, roles: &mut Vec<(u32, Text)>) {
        let mut known = self.may_log_in.borrow_mut();
        let unknown = roles.iter().map(|(role, _)| *role);
        let unknown: Vec<u32> = unknown.filter(|role| !known.contains_key(role)).collect();
        if !unknown.is_empty() {
            known.extend(Role::may_log_in(&unknown));
        }
        roles.retain(|(role, _)| known.get(role) == Some(&false));
    }

    /// Who is a member of the groups that these limits count the members of.
    fn members(&self, limits: &[Limit]) -> Members {
        let groups = limits.iter().filter_map(|limit| match limit.scope.who {
            Who::MembersOf(group) => Some(group),
            Who::Anyone | Who::Role(_) => None,
        });
        match groups.collect::<Vec<_>>().as_slice() {
            [] => Members::default(),
            groups => self.memberships.of(groups),
        }
    }
}

fn parsed(object: Object, text: Option<Text>, troubles: &mut Vec<Trouble>) -> Label {
    match text.map(|text| Label::read(&text?)) {
        None => Label::default(),
        Some(Ok(label)) => {
            if !label.unknown.is_empty() {
                troubles.push(Trouble::Unknown(object, label.unknown.clone()));
            }
            label
        }
        Some(Err(why)) => {
            troubles.push(Trouble::Invalid(object, why));
            Label::default()
        }
    }
}

/// The limits that count these sessions now, each once, and whom they hold. A role or database that was
/// dropped has none of its own; one that is exempt has none that counts only its own sessions. A label
/// that cannot be read is passed over. And the members of the groups that these limits count.
pub fn applying<'a>(
    sessions: impl Iterator<Item = &'a Session>,
    settings: &Settings,
) -> (Applying, Members) {
    let (labels, defaults) = (Labels::read(), settings::defaults());
    let mut applying = Applying::default();
    for session in sessions {
        if applying.hold.contains_key(&session.kind()) {
            continue;
        }
        let role = Role::by_oid(session.role).unwrap_or_else(|| Role::dropped(session.role));
        let database = Database::by_oid(session.database);
        let (facts, _) = labels.facts(&role, database.as_ref(), session.address, &defaults);
        let applicable = apply::applicable(&facts);
        let exempt = applicable.exempt
            || settings.exempts(role.superuser, session.address, session.walsender);
        let mut hold = Vec::new();
        for limit in applicable.limits {
            if exempt && limit.scope.who == Who::Role(role.oid) {
                continue;
            }
            let index = index_of(&mut applying.limits, limit);
            hold.extend(Some(index).filter(|_| !exempt));
        }
        applying.hold.insert(session.kind(), hold);
    }
    let members = labels.members(&applying.limits);
    (applying, members)
}

/// Where the limit is, from now on at the latest. Policies may differ.
fn index_of(limits: &mut Vec<Limit>, limit: Limit) -> usize {
    let key = |limit: &Limit| {
        let (scope, enforced) = (limit.scope, limit.enforced);
        (limit.source, scope, limit.per, limit.max, enforced)
    };
    let known = limits.iter().position(|known| key(known) == key(&limit));
    known.unwrap_or_else(|| {
        limits.push(limit);
        limits.len() - 1
    })
}

/// What is known that a decision may need.
pub struct Known {
    pub members: Members,
    pub idle: Option<Idle>,
    /// Whether the login may wait.
    pub may_wait: Option<bool>,
}

impl Known {
    pub fn new(members: Members) -> Known {
        Known {
            members,
            idle: None,
            may_wait: None,
        }
    }
}

/// Asks again, each time knowing more, until all is known that matters.
pub fn knowing<T>(
    mut known: Known,
    may_wait: impl Fn() -> bool,
    mut ask: impl FnMut(&Known) -> Result<T, Unknown>,
) -> T {
    loop {
        match ask(&known) {
            Ok(answer) => return answer,
            Err(Unknown::Members(group)) => {
                known.members.extend(Memberships::default().of(&[group]))
            }
            Err(Unknown::Idle) => known.idle = Some(compat::idle_sessions()),
            Err(Unknown::Patience) => known.may_wait = Some(may_wait()),
        }
    }
}
