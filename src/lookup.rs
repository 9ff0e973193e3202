//! What decides which limits apply to a login, read from the catalogs: for the hook, and for the views, which ask the
//! same of logins that are not made.

use crate::pg::backend;
use crate::pg::catalog::{Database, Role, name_of};
use crate::pg::labels::{self, LabelText, with_labels};
use crate::pg::memberships::{Administrators, FEW_PAGES, Memberships};
use crate::pg::memory;
use crate::settings::{self, Enforcement, Settings};
use crate::shmem;
use model::attempt::MayWait;
use model::label::{Label, LabelProblem};
use model::limit::{Across, Limit, Object, OnExcess, Who};
use model::members::{Members, Missing};
use model::precedence::{self, Applicable, Defaults, InDatabase, LoginFacts};
use model::servers::counter::Counter;
use model::servers::place::Wanted;
use model::session::Session;
use model::sweep::Applying;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The labels, and who is a member of what.
pub struct Labels {
    texts: Texts,
    memberships: Memberships,
    /// What was found of the roles that have a label and that others are members of.
    may_log_in: RefCell<BTreeMap<u32, bool>>,
}

enum Texts {
    /// All of them, as they were at one moment.
    All(BTreeMap<Object, LabelText>),
    /// Each is looked up when it is asked for.
    Sought,
}

/// What a label says, or why it cannot be read.
type ReadableText = Result<Vec<u8>, String>;

/// See `administered_groups`.
pub type Administered = BTreeMap<u32, BTreeSet<u32>>;

/// See `ask`.
pub type Answer = (Applicable, Members, Vec<LabelProblem>);

/// What a login would have to meet now, nothing if it is exempt; the members of the groups that count for it; and what
/// is wrong with the labels that it met.
pub fn ask(
    role: &Role,
    database: Option<&Database>,
    address: Option<IpAddr>,
    walsender: bool,
    settings: &Settings,
) -> Answer {
    let mut applicable = Applicable {
        exempt: settings.exempts(role.superuser, address, walsender),
        limits: Vec::new(),
    };
    let (mut members, mut problems) = (Members::default(), Vec::new());
    if !applicable.exempt && settings.enforcement != Enforcement::Off {
        let (labels, defaults) = (Labels::for_login(), settings::defaults());
        let (facts, met) = labels.facts(role, database, address, &defaults);
        (applicable, problems) = (precedence::applicable(&facts), met);
        if applicable.exempt {
            applicable.limits.clear();
        }
        members = labels.members(&applicable.limits);
    }
    (applicable, members, problems)
}

/// The label for whose sake such a login is refused, and why: the label may have been meant to refuse it.
pub fn invalid_label<'a>(
    applicable: &Applicable,
    problems: &'a [LabelProblem],
    settings: &Settings,
) -> Option<(Object, &'a str)> {
    let refuses = settings.enforcement == Enforcement::On && !applicable.exempt;
    problems
        .iter()
        .filter(|_| refuses)
        .find_map(|problem| match problem {
            LabelProblem::Invalid(object, why) => Some((*object, why.as_str())),
            LabelProblem::Unknown(..) => None,
        })
}

impl Labels {
    /// All labels, as they are now.
    pub fn read() -> Labels {
        Labels::of(Texts::All(with_labels(labels::LabelCatalog::read)))
    }

    /// For a question or two.
    pub fn sought() -> Labels {
        Labels::of(Texts::Sought)
    }

    /// For one login: the cheapest way.
    fn for_login() -> Labels {
        let changes = shmem::label_changes();
        let at_rest = changes.at_rest();
        if at_rest.is_some_and(|moment| changes.had_none(moment)) {
            return Labels::of(Texts::All(BTreeMap::new()));
        }
        // On a standby labels arrive by replay, which counts no change, so "no labels" is never remembered there.
        // Recovery is checked before the labels: a promotion in between then errs on the safe side.
        let is_primary = !backend::is_standby();
        let texts = with_labels(|labels| match labels.pages() {
            0 => {
                let moment = at_rest.filter(|_| is_primary);
                moment
                    .into_iter()
                    .for_each(|moment| changes.saw_none(moment));
                Texts::All(BTreeMap::new())
            }
            1..=FEW_PAGES => Texts::All(labels.read()),
            _ => Texts::Sought,
        });
        Labels::of(texts)
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
    ) -> (LoginFacts<'a>, Vec<LabelProblem>) {
        let mut problems = Vec::new();
        let groups = self.labelled_groups(role.oid).into_iter();
        let groups = groups.map(|(group, text)| {
            (
                group,
                parsed(Object::Role(group), Some(text), &mut problems),
            )
        });
        let groups = groups.collect();
        let mut label = |object| self.label(object, &mut problems);
        let facts = LoginFacts {
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
        (facts, problems)
    }

    /// What the object's label says; nothing if it has none, or one that is wrong.
    pub fn label(&self, object: Object, problems: &mut Vec<LabelProblem>) -> Label {
        parsed(object, self.text(object), problems)
    }

    /// The label as it was set, or why it cannot be read.
    pub fn text(&self, object: Object) -> Option<ReadableText> {
        let text = match &self.texts {
            Texts::Sought => labels::label_of(object),
            Texts::All(labels) => labels.get(&object).cloned(),
        };
        let too_long = || "it is too long to be read at login".to_string();
        text.map(|text| text.ok_or_else(too_long))
    }

    /// The groups that the role is a member of and that have a label, with its text.
    fn labelled_groups(&self, role: u32) -> Vec<(u32, ReadableText)> {
        if let Texts::All(labels) = &self.texts {
            let is_other_role =
                |object: &Object| matches!(object, Object::Role(oid) if *oid != role);
            if !labels.keys().any(is_other_role) {
                return Vec::new();
            }
        }
        let groups = self.memberships.groups_of(role).into_iter();
        let labelled = groups.filter_map(|group| Some((group, self.text(Object::Role(group))?)));
        // A role with LOGIN can be granted to others, too, but its label limits only its own sessions.
        labelled
            .filter(|(group, _)| !self.may_log_in(*group))
            .collect()
    }

    /// Whether the role has LOGIN, or is no more.
    fn may_log_in(&self, role: u32) -> bool {
        let mut known = self.may_log_in.borrow_mut();
        *known
            .entry(role)
            .or_insert_with(|| Role::by_oid(role).is_none_or(|role| role.can_login))
    }

    /// Who is a member of the groups that these limits count the members of.
    fn members(&self, limits: &[Limit]) -> Members {
        let mut members = Members::default();
        for limit in limits {
            if let Who::MembersOf(group) = limit.scope.who
                && members.of(group).is_none()
            {
                members.insert(group, self.memberships.members_of(group));
            }
        }
        members
    }
}

/// Whether some setting or label lets logins replace sessions.
pub fn some_limit_replaces() -> bool {
    let defaults = settings::defaults();
    let labels = with_labels(labels::LabelCatalog::read).into_values();
    let labels = labels.filter_map(|text| Label::read(&text?).ok());
    let replaces = |policy: Option<OnExcess>| policy.is_some_and(|it| it != OnExcess::Refuse);
    let some_replaces = |label: &Label| {
        replaces(label.on_excess) || label.limits.iter().any(|limit| replaces(limit.on_excess))
    };
    replaces(Some(defaults.on_excess))
        || some_replaces(&defaults.cluster_limits)
        || labels.into_iter().any(|label| some_replaces(&label))
}

/// The groups whose members their labels are about, each with the roles, superusers aside, that can make anyone a member.
pub fn administered_groups() -> Administered {
    let labels = with_labels(labels::LabelCatalog::read);
    let groups = labels.into_iter().filter_map(|(object, text)| {
        let label = Label::read(&text?).ok().filter(Label::is_about_members);
        match object {
            Object::Role(oid) if label.is_some() => Role::by_oid(oid).filter(|it| !it.can_login),
            _ => None,
        }
    });
    let groups: Vec<Role> = groups.collect();
    if groups.is_empty() {
        return Administered::new();
    }
    let administrators = Administrators::read();
    let groups = groups
        .iter()
        .map(|group| (group.oid, administrators.of(group.oid)));
    groups.filter(|(_, by)| !by.is_empty()).collect()
}

fn parsed(object: Object, text: Option<ReadableText>, problems: &mut Vec<LabelProblem>) -> Label {
    match text.map(|text| Label::read(&text?)) {
        None => Label::default(),
        Some(Ok(label)) => {
            if !label.unknown.is_empty() {
                problems.push(LabelProblem::Unknown(object, label.unknown.clone()));
            }
            label
        }
        Some(Err(why)) => {
            problems.push(LabelProblem::Invalid(object, why));
            Label::default()
        }
    }
}

/// The limits that count these sessions now, each once, and whom they hold; and the members of the groups that these
/// limits count. A role or database that was dropped has no limits of its own. A session that is exempt is not held by
/// any, and has no limits that count only its own role. A label that cannot be read is passed over.
pub fn applying<'a>(
    sessions: impl Iterator<Item = &'a Session>,
    settings: &Settings,
) -> (Applying, Members) {
    let (labels, defaults) = (Labels::read(), settings::defaults());
    let mut applying = Applying::default();
    let mut known = HashMap::new();
    for session in sessions {
        if applying.hold.contains_key(&session.kind()) {
            continue;
        }
        pgrx::check_for_interrupts!();
        memory::require(0);
        let role = Role::by_oid(session.role).unwrap_or_else(|| Role::dropped(session.role));
        let database = Database::by_oid(session.database);
        let (facts, _) = labels.facts(&role, database.as_ref(), session.address, &defaults);
        let applicable = precedence::applicable(&facts);
        let exempt = applicable.exempt
            || settings.exempts(role.superuser, session.address, session.walsender);
        let mut hold = Vec::new();
        for limit in applicable.limits {
            if exempt && limit.scope.who == Who::Role(role.oid) {
                continue;
            }
            // Policies may differ.
            let about = (limit.scope, limit.per, limit.unit, limit.across);
            let index = *known
                .entry((limit.source, about, limit.max, limit.enforced))
                .or_insert_with(|| {
                    applying.limits.push(limit);
                    applying.limits.len() - 1
                });
            hold.extend(Some(index).filter(|_| !exempt));
        }
        applying.hold.insert(session.kind(), hold);
    }
    let members = labels.members(&applying.limits);
    (applying, members)
}

/// What those of these limits want that need a place; nothing where servers share no limits.
pub fn across_servers(limits: &[Limit]) -> Vec<Wanted> {
    if !settings::servers::are_shared() {
        return Vec::new();
    }
    let need = |limit: &Limit| limit.enforced && limit.across == Across::Servers;
    let limits = limits.iter().enumerate();
    let limits = limits.filter(|(_, limit)| need(limit));
    let wanted = |(index, limit): (usize, &Limit)| {
        Wanted::new(index, Counter::of(limit.scope, &name_of), limit.max)
    };
    limits.map(wanted).collect()
}

/// What is known that a decision may need.
pub struct Inputs {
    pub members: Members,
    /// Whether the login may wait, and on whose account.
    pub may_wait: Option<MayWait>,
    /// Whether there is memory to count different roles or addresses in.
    pub tally: bool,
}

impl Inputs {
    pub fn new(members: Members) -> Inputs {
        Inputs {
            members,
            may_wait: None,
            tally: false,
        }
    }
}

/// Decides again and again, each time with one more input, until none is missing.
pub fn retry_with<T>(
    mut inputs: Inputs,
    members_of: impl Fn(u32) -> Vec<u32>,
    may_wait: impl Fn() -> MayWait,
    mut decide: impl FnMut(&Inputs) -> Result<T, Missing>,
) -> T {
    loop {
        match decide(&inputs) {
            Ok(answer) => return answer,
            Err(Missing::Members(group)) => {
                inputs.members.insert(group, members_of(group));
            }
            Err(Missing::Patience) => inputs.may_wait = Some(may_wait()),
            Err(Missing::Tally) => inputs.tally = true,
        }
    }
}
