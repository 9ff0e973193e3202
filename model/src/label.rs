//! The JSON of a label, which is also that of the setting `session_limit.cluster_limits`.

use crate::encoding;
use crate::json_error;
use crate::label_target::LabelTarget;
use crate::limit::{Across, Count, Names, Object, OnExcess, Source};
use crate::network::Network;
use crate::per::Per;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, IntoDeserializer, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// The longest label. A longer one could be stored out of line (TOAST), where a login cannot read it.
pub const MAX_LABEL_BYTES: usize = 1000;

/// PostgreSQL's: every name has fewer bytes than this.
const NAMEDATALEN: usize = 64;

/// The largest `max` of a limit: the largest `max_connections` that PostgreSQL allows.
pub const MAX_SESSIONS: i32 = 262_143;

/// The longest `max_wait`: the longest `authentication_timeout` that PostgreSQL allows, and no login can wait longer.
pub const MAX_WAIT: Duration = Duration::from_secs(600);

/// A label that has been read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    pub limits: Vec<LabelLimit>,
    /// For limits that have none of their own.
    pub on_excess: Option<OnExcess>,
    /// For limits that have none of their own.
    pub max_wait: Option<Duration>,
    pub exempt: bool,
    /// The paths of fields that this version does not know, such as `limits[0].color`, as a text of [`encoding`].
    pub unknown: Vec<String>,
}

/// One of a label's limits.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(expecting = "a limit: {\"max\": ...}")]
pub struct LabelLimit {
    /// -1: no limit.
    #[serde(deserialize_with = "max")]
    pub max: i32,
    /// None: the default of what the label is on ([`LabelTarget::default_per`]).
    pub per: Option<Per>,
    #[serde(default, deserialize_with = "word_or_default")]
    pub count: Count,
    #[serde(default, deserialize_with = "word_or_default")]
    pub across: Across,
    /// The name of a database, which need not exist.
    #[serde(default, deserialize_with = "name")]
    pub database: Option<Vec<u8>>,
    pub network: Option<Network>,
    #[serde(default, deserialize_with = "word")]
    pub on_excess: Option<OnExcess>,
    #[serde(default, deserialize_with = "interval")]
    pub max_wait: Option<Duration>,
    #[serde(default, deserialize_with = "word")]
    pub enforcement: Option<LimitEnforcement>,
    #[serde(flatten)]
    unknown: UnknownFields,
}

/// Its `per`, `database`, `network`, `count` and `across`.
pub type LimitKey<'a> = (
    Option<Per>,
    Option<&'a [u8]>,
    Option<Network>,
    Count,
    Across,
);

/// By name. Their values do not matter.
type UnknownFields = BTreeMap<String, IgnoredAny>;

/// Whether a limit is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitEnforcement {
    On,
    /// It is only tried out: a login over it is logged and admitted.
    Log,
}

/// A label as it is written: with `limits`, or, short for one limit, with the fields of that limit.
#[derive(Deserialize)]
#[serde(expecting = "a label: {\"limits\": [...]}")]
struct Written {
    limits: Option<Vec<LabelLimit>>,
    #[serde(default, deserialize_with = "optional_max")]
    max: Option<i32>,
    per: Option<Per>,
    #[serde(default, deserialize_with = "word")]
    count: Option<Count>,
    #[serde(default, deserialize_with = "word")]
    across: Option<Across>,
    #[serde(default, deserialize_with = "name")]
    database: Option<Vec<u8>>,
    network: Option<Network>,
    #[serde(default, deserialize_with = "word")]
    enforcement: Option<LimitEnforcement>,
    #[serde(default, deserialize_with = "word")]
    on_excess: Option<OnExcess>,
    #[serde(default, deserialize_with = "interval")]
    max_wait: Option<Duration>,
    #[serde(default)]
    exempt: bool,
    #[serde(flatten)]
    unknown: UnknownFields,
}

impl Label {
    /// Reads a label as a login does: fields that this version does not know go into `unknown`. The error says what is
    /// wrong, for a message, as a text of [`encoding`].
    pub fn read(json: &[u8]) -> Result<Label, String> {
        Written::read(json, None)?.label()
    }

    /// The same, for something that is to be set there: an error about a `per` says which there are.
    pub fn read_for(json: &[u8], target: LabelTarget) -> Result<Label, String> {
        Written::read(json, Some(target))?.label()
    }

    /// Whether it would have an effect as the label of a group.
    pub fn is_about_members(&self) -> bool {
        let policy = self.on_excess.is_some() || self.max_wait.is_some();
        self.exempt || policy || self.limits.iter().any(|limit| limit.per.is_some())
    }

    /// The longest wait that it asks for, if it asks for any.
    pub fn longest_wait(&self) -> Option<Duration> {
        let waits = self.limits.iter().map(|limit| limit.max_wait);
        waits.chain([self.max_wait]).flatten().max()
    }

    /// Reads a label that a user wants to set there. Fields that are unknown, or not allowed there, are errors, too.
    pub fn check(json: &[u8], target: LabelTarget) -> Result<Label, String> {
        let written = Written::read(json, Some(target))?;
        let is_list = written.limits.is_some();
        let label = written.label()?;
        if let Some(field) = label.unknown.first() {
            return Err(format!("unknown field \"{field}\""));
        }
        if label.exempt && matches!(target, LabelTarget::Database | LabelTarget::Cluster) {
            return Err(format!("field \"exempt\": not for {}", target.words()));
        }
        for (index, limit) in label.limits.iter().enumerate() {
            let path = path(is_list, index);
            limit
                .check(target)
                .map_err(|(field, why)| format!("field \"{path}{field}\": {why}"))?;
            let takes_the_labels = !is_list && limit.count == Count::Roles;
            if takes_the_labels && label.on_excess.is_some_and(replaces) {
                return Err(format!("field \"on_excess\": {CANNOT_REPLACE}"));
            }
            let has_its_key = |other: &LabelLimit| other.key(target) == limit.key(target);
            if let Some(first) = label.limits.iter().take(index).position(has_its_key) {
                return Err(format!(
                    "field \"limits[{index}]\": same \"per\", \"database\", \"network\", \"count\" and \"across\" as limits[{first}]"
                ));
            }
        }
        Ok(label)
    }
}

impl LabelLimit {
    /// A limit that is only a number.
    pub fn new(max: i32) -> LabelLimit {
        LabelLimit {
            max,
            per: None,
            count: Count::Sessions,
            across: Across::Server,
            database: None,
            network: None,
            on_excess: None,
            max_wait: None,
            enforcement: None,
            unknown: UnknownFields::new(),
        }
    }

    /// What tells it from the other limits of its label: no two have the same key.
    pub fn key(&self, target: LabelTarget) -> LimitKey<'_> {
        (
            self.per.or(target.default_per()),
            self.database.as_deref(),
            self.network,
            self.count,
            self.across,
        )
    }

    /// The error names the field, and says what is wrong with it.
    fn check(&self, target: LabelTarget) -> Result<(), (&'static str, String)> {
        let choices = target.choices();
        match self.per.or(target.default_per()) {
            None => {
                let why = format!("must be given for {}: {choices}", target.words());
                return Err(("per", why));
            }
            Some(per) if !target.pers().contains(&per) => {
                let (per, target) = (per.json(), target.words());
                let why = format!("{per} is not allowed for {target}; use {choices}");
                return Err(("per", why));
            }
            Some(per) => self.check_count(per, target)?,
        }
        let is_name = |name: &Vec<u8>| (1..NAMEDATALEN).contains(&name.len()) && !name.contains(&0);
        if !self.database.as_ref().is_none_or(is_name) {
            return Err(("database", "not the name of a database".to_string()));
        }
        if target == LabelTarget::Database && self.database.is_some() {
            let why = "not allowed in a database's label".to_string();
            return Err(("database", why));
        }
        Ok(())
    }

    /// Whether there can be more than one of what it counts, and whether sessions can end for it.
    fn check_count(&self, per: Per, target: LabelTarget) -> Result<(), (&'static str, String)> {
        if let Some(single) = target.single(per, self.count) {
            let (count, per, target) = (self.count.word(), per.json(), target.words());
            let why = format!(
                "\"{count}\" is not allowed for {target} with \"per\": {per}, where each {single} has a count of its own"
            );
            return Err(("count", why));
        }
        if self.count == Count::Roles && self.on_excess.is_some_and(replaces) {
            return Err(("on_excess", CANNOT_REPLACE.to_string()));
        }
        Ok(())
    }

    /// Whether it can be counted across servers, if it is to. What is wrong is not left to be counted on this server alone:
    /// that would be another limit.
    fn check_across(&self) -> Result<(), String> {
        let is_tried_out = self.enforcement == Some(LimitEnforcement::Log);
        let with = match (self.across, self.count) {
            (Across::Servers, Count::Sessions) if is_tried_out => "\"enforcement\": \"log\"",
            (Across::Servers, Count::Roles) => "\"count\": \"roles\"",
            (Across::Servers, Count::Addresses) => "\"count\": \"addresses\"",
            (Across::Server, _) | (Across::Servers, Count::Sessions) => return Ok(()),
        };
        Err(format!("\"servers\" is not allowed with {with}"))
    }
}

/// What the path of a limit's field begins with.
fn path(is_list: bool, index: usize) -> String {
    match is_list {
        true => format!("limits[{index}]."),
        false => String::new(),
    }
}

/// Of a limit on roles.
const CANNOT_REPLACE: &str = "with \"count\": \"roles\" only \"refuse\" is allowed, because no session of the login's own role can make room";

fn replaces(on_excess: OnExcess) -> bool {
    on_excess != OnExcess::Refuse
}

impl Written {
    fn read(json: &[u8], target: Option<LabelTarget>) -> Result<Written, String> {
        let json = encoding::json(json)?;
        serde_json::from_str(&json).map_err(|error| {
            // Read once more to learn in which field the error is. Not always, because that would slow every login.
            let mut track = serde_path_to_error::Track::new();
            let mut reader = serde_json::Deserializer::from_str(&json);
            let tracked = serde_path_to_error::Deserializer::new(&mut reader, &mut track);
            let _ = Written::deserialize(tracked);
            let path = track.path().to_string();
            let mut error = json_error::text(&error, &json);
            let mut fields = path.split(['.', '[']);
            if let (Some(target), true) = (target, fields.any(|field| field == "per")) {
                error += &format!("; use {}", target.choices());
            }
            // If the JSON itself is wrong, the last part of the path may be unknown: a question mark.
            match path.trim_end_matches(['.', '?']) {
                "" if error.starts_with("is ") => format!("it {error}"),
                "" => error,
                path => format!("field \"{path}\": {error}"),
            }
        })
    }

    /// The label that is meant. An error if it is neither form, or both.
    fn label(self) -> Result<Label, String> {
        let mut unknown: Vec<String> = self.unknown.into_keys().collect();
        let is_list = self.limits.is_some();
        let limits = match (self.limits, self.max) {
            (Some(_), Some(_)) => return Err("field \"max\": \"limits\" is given, too".to_string()),
            (limits, None) => {
                let strays = [
                    ("per", self.per.is_some()),
                    ("count", self.count.is_some()),
                    ("across", self.across.is_some()),
                    ("database", self.database.is_some()),
                    ("network", self.network.is_some()),
                    ("enforcement", self.enforcement.is_some()),
                ];
                if let Some((field, _)) = strays.iter().find(|(_, given)| *given) {
                    return Err(format!(
                        "field \"{field}\": belongs to a limit, with \"max\""
                    ));
                }
                limits.unwrap_or_default()
            }
            (None, Some(max)) => vec![LabelLimit {
                per: self.per,
                count: self.count.unwrap_or_default(),
                across: self.across.unwrap_or_default(),
                database: self.database,
                network: self.network,
                enforcement: self.enforcement,
                ..LabelLimit::new(max)
            }],
        };
        for (index, limit) in limits.iter().enumerate() {
            let path = path(is_list, index);
            limit
                .check_across()
                .map_err(|why| format!("field \"{path}across\": {why}"))?;
            let name = |field| format!("{path}{field}");
            unknown.extend(limit.unknown.keys().map(name));
        }
        Ok(Label {
            limits,
            on_excess: self.on_excess,
            max_wait: self.max_wait,
            exempt: self.exempt,
            unknown,
        })
    }
}

/// Reads a `max`: an integer from -1 to [`MAX_SESSIONS`].
fn max<'de, D: Deserializer<'de>>(value: D) -> Result<i32, D::Error> {
    struct Max;

    impl Visitor<'_> for Max {
        type Value = i32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an integer from -1 to {MAX_SESSIONS}")
        }

        fn visit_i64<E: de::Error>(self, max: i64) -> Result<i32, E> {
            let max_or_none = i32::try_from(max).ok();
            let allowed = max_or_none.filter(|max| (-1..=MAX_SESSIONS).contains(max));
            allowed.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(max), &self))
        }

        fn visit_u64<E: de::Error>(self, max: u64) -> Result<i32, E> {
            let refused = |_| E::invalid_value(de::Unexpected::Unsigned(max), &self);
            i64::try_from(max)
                .map_err(refused)
                .and_then(|max| Max.visit_i64(max))
        }
    }

    value.deserialize_any(Max)
}

fn optional_max<'de, D: Deserializer<'de>>(value: D) -> Result<Option<i32>, D::Error> {
    max(value).map(Some)
}

/// Reads one of a few words. To anything but a text `serde_json` says no more than that it expects a value.
fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    struct Word<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Word<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let no_word: Result<T, de::value::Error> = T::deserialize("".into_deserializer());
            let error = no_word.err().map(|error| error.to_string());
            let words = error
                .as_deref()
                .and_then(|error| error.split_once("expected "));
            f.write_str(words.map_or("a string", |(_, words)| words))
        }

        fn visit_unit<E: de::Error>(self) -> Result<Option<T>, E> {
            Ok(None)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<T>, E> {
            T::deserialize(text.into_deserializer()).map(Some)
        }
    }

    value.deserialize_any(Word(PhantomData))
}

fn word_or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    value: D,
) -> Result<T, D::Error> {
    word(value).map(Option::unwrap_or_default)
}

/// Reads a name, as the bytes that it has in the catalogs.
fn name<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<u8>>, D::Error> {
    let text = Option::<String>::deserialize(value)?;
    Ok(text.map(|text| encoding::bytes(&text)))
}

/// Reads an interval of at most [`MAX_WAIT`], written as in a setting: `"5s"`, `"0.5s"`, `"100ms"`, `"1min"`. A number is
/// milliseconds.
fn interval<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    struct Interval;

    impl Visitor<'_> for Interval {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an interval from 0 to 10min such as \"5s\" or \"100ms\"")
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Duration, E> {
            let refused = || E::invalid_value(de::Unexpected::Float(number), &self);
            of_milliseconds(number).ok_or_else(refused)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Duration, E> {
            let refused = || E::invalid_value(de::Unexpected::Signed(number), &self);
            of_milliseconds(number as f64).ok_or_else(refused)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Duration, E> {
            let refused = || E::invalid_value(de::Unexpected::Unsigned(number), &self);
            of_milliseconds(number as f64).ok_or_else(refused)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            let refused = || E::invalid_value(de::Unexpected::Str(text), &self);
            let number = milliseconds(text);
            number.and_then(of_milliseconds).ok_or_else(refused)
        }
    }

    value.deserialize_any(Interval).map(Some)
}

/// Whole milliseconds, rounded as the server rounds a setting. None if it is out of range.
fn of_milliseconds(number: f64) -> Option<Duration> {
    let rounded = number.round_ties_even();
    let most = MAX_WAIT.as_millis() as f64;
    (0.0..=most)
        .contains(&rounded)
        .then(|| Duration::from_millis(rounded as u64))
}

/// The units of `src/backend/utils/misc/guc.c`. None if the text is not an interval.
fn milliseconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_unit = |char: char| char.is_ascii_alphabetic() && !matches!(char, 'e' | 'E');
    let (number, unit) = text.split_at(text.find(is_unit).unwrap_or(text.len()));
    let factor = match unit {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    Some(number.trim_end().parse::<f64>().ok()? * factor)
}

/// What is wrong with a label that a login has read.
pub enum LabelProblem {
    /// The label on this object cannot be read, for this reason.
    Invalid(Object, String),
    /// The label on this object has these fields that this version does not know.
    Unknown(Object, Vec<String>),
}

impl LabelProblem {
    /// The message for the server log.
    pub fn words(&self, names: Names) -> Vec<u8> {
        let (object, what) = match self {
            LabelProblem::Invalid(object, why) => (object, format!("is invalid: {why}")),
            LabelProblem::Unknown(object, fields) => {
                (object, format!("has unknown fields: {}", fields.join(", ")))
            }
        };
        [
            b"session_limit: ",
            Source::Label(*object).words(names).as_slice(),
            b" ",
            &encoding::bytes(&what),
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(target: LabelTarget, json: &str) -> Result<Label, String> {
        Label::check(json.as_bytes(), target)
    }

    fn good(target: LabelTarget, json: &str) -> Label {
        on(target, json).expect(json)
    }

    #[test]
    fn the_examples_are_valid() {
        for target in [
            LabelTarget::Role,
            LabelTarget::Group,
            LabelTarget::Database,
            LabelTarget::Cluster,
        ] {
            good(target, target.example());
        }
        let label = good(LabelTarget::Role, LabelTarget::Role.example());
        assert_eq!(
            label
                .limits
                .iter()
                .map(|limit| limit.max)
                .collect::<Vec<_>>(),
            [3, 1, 2, 1]
        );
        assert_eq!(label.max_wait, Some(Duration::from_secs(5)));
    }

    #[test]
    fn one_limit_needs_no_list() {
        let short = good(
            LabelTarget::Role,
            r#"{"max": 1, "per": "address", "on_excess": "refuse"}"#,
        );
        let long = good(
            LabelTarget::Role,
            r#"{"limits": [{"max": 1, "per": "address"}], "on_excess": "refuse"}"#,
        );
        assert_eq!(short, long);
        assert_eq!(good(LabelTarget::Role, "{}"), Label::default());
        assert_eq!(
            good(LabelTarget::Role, r#"{"on_excess": "replace_idle"}"#).on_excess,
            Some(OnExcess::ReplaceIdle)
        );
    }

    #[test]
    fn intervals_are_written_as_in_a_setting() {
        let table = [
            ("\"5s\"", 5000),
            ("\"100ms\"", 100),
            ("\" 1 min\"", 60_000),
            ("250", 250),
            ("\"0\"", 0),
            ("\"10min\"", 600_000),
            ("\"0.5s\"", 500),
            ("\"500us\"", 0),
            ("\"1500us\"", 2),
            ("\"0.1h\"", 360_000),
            ("\"0.001d\"", 86_400),
            ("\"1e2\"", 100),
            ("1.6", 2),
        ];
        for (written, ms) in table {
            let label = good(
                LabelTarget::Role,
                &format!(r#"{{"max": 1, "max_wait": {written}}}"#),
            );
            assert_eq!(label.max_wait, Some(Duration::from_millis(ms)), "{written}");
        }
    }

    /// One case a line: what the label is on, the label, and a part of the error.
    const WRONG: &str = r##"
        role => end of the text in a value
        role [] => it is an array; expected a label
        role {} x => trailing characters at character 4
        role {"max": 1 => end of the text in an object at character 9
        role {"limits": [{"max": 1 => field "limits[0]": end of the text in an object
        role {"limits": [[1, null, null, null, null, 5, null]]} => field "limits[0]":
        role {"maximum": 1} => unknown field "maximum"
        role {"limits": [{"max": 1}, {"max": 2, "per": "address", "color": 3}]} => unknown field "limits[1].color"
        role {"max": "1"} => field "max": is "1"; expected an integer from -1 to 262143
        role {"max": 1.5} => field "max": is 1.5; expected an integer
        role {"max": -2} => field "max": is -2; expected an integer from -1 to 262143
        role {"max": 262144} => field "max": is 262144; expected
        role {"max": 1, "max": 2} => duplicate field "max"
        role {"max": null} => field "max": is null; expected an integer
        role {"limits": [{"per": "role"}]} => field "limits[0]": missing field "max"
        role {"limits": {"max": 1}} => field "limits": is an object; expected an array
        role {"limits": [], "max": 1} => field "max": "limits" is given, too
        role {"network": "10.0.0.0/8"} => field "network": belongs to a limit
        role {"max": 1, "per": "week"} => field "per": unknown value "week"; use "role", "address", ["role", "database"], ["role", "address"] or ["role", "database", "address"]
        role {"max": 1, "per": "group"} => field "per": "group" is not allowed for a role; use "role", "address",
        role {"max": 1, "per": ["role", "week"]} => field "per": unknown value "week"; use "role", "address", ["role", "database"]
        role {"limits": [{"max": 1, "per": ["role", 5]}]} => field "limits[0].per[1]": is 5; expected a string; use "role"
        role {"max": 1, "per": 5} => field "per": is 5; expected a string or an array of strings; use "role", "address"
        role {"max": 1, "per": []} => field "per": the list is empty; use "role"
        role {"max": 1, "per": ["role", "role"]} => field "per": "role" is there twice; use
        role {"max": 1, "per": ["database", "address"]} => field "per": ["database", "address"] is not allowed for a role; use "role"
        role {"max": 1, "per": "role, database"} => field "per": unknown value "role, database"; use "role"
        role {"limits": [{"max": 1, "per": ["role", "database"]}, {"max": 2, "per": ["database", "role"]}]} => field "limits[1]": same "per"
        role {"limits": [{"max": 1}, {"max": 2, "per": ["role"]}]} => field "limits[1]": same "per"
        group {"max": 1, "per": ["role", "group"]} => field "per": "group" is not for a list; use "role", "address", "group", ["role", "database"]
        group {"max": 1, "per": ["database", "address"]} => field "per": ["database", "address"] is not allowed for a group
        role {"max": 1, "per": "database"} => field "per"
        role {"max": 1, "network": "10.0.0.1/8"} => field "network": "10.0.0.1/8" has bits set
        role {"limits": [{"max": 1, "network": "ten"}]} => field "limits[0].network": "ten" is not a network
        role {"max": 1, "database": 5} => field "database": is 5; expected a string
        role {"max": 1, "max_wait": "5 weeks"} => field "max_wait": is "5 weeks"; expected an interval
        role {"max": 1, "max_wait": "11min"} => field "max_wait": is "11min"; expected
        role {"max": 1, "max_wait": "1d"} => field "max_wait": is "1d"; expected
        role {"max": 1, "max_wait": "-1s"} => field "max_wait": is "-1s"; expected
        role {"max": 1, "max_wait": [5]} => field "max_wait": is an array; expected an interval
        role {"max": 1, "max_wait": -5} => field "max_wait": is -5; expected
        role {"on_excess": "replace"} => field "on_excess": unknown value "replace"
        role {"max": 1, "enforcement": "off"} => field "enforcement": unknown value "off"
        role {"exempt": "yes"} => field "exempt": is "yes"; expected true or false
        role {"limits": [{"max": 1}, {"max": 2, "per": "role"}]} => field "limits[1]": same "per", "database", "network", "count" and "across" as limits[0]
        role {"max": 1, "count": "hosts"} => field "count": unknown value "hosts", expected one of "sessions", "roles", "addresses"
        role {"count": "addresses"} => field "count": belongs to a limit
        role {"max": 1, "across": "cluster"} => field "across": unknown value "cluster", expected "server" or "servers"
        role {"max": 1, "across": true} => field "across": is true; expected "server" or "servers"
        role {"limits": [{"max": 1, "across": ["servers"]}]} => field "limits[0].across": is an array; expected "server" or "servers"
        role {"max": 1, "count": 5} => field "count": is 5; expected one of "sessions", "roles", "addresses"
        role {"limits": [{"max": 1, "enforcement": true}]} => field "limits[0].enforcement": is true; expected "on" or "log"
        role {"max": 1, "on_excess": {}} => field "on_excess": is an object; expected one of "refuse"
        role {"across": "servers"} => field "across": belongs to a limit, with "max"
        role {"limits": [{"max": 1, "across": "servers"}, {"max": 2}, {"max": 3, "across": "server"}]} => field "limits[2]": same "per"
        role {"limits": [{"max": 1, "across": "servers"}, {"max": 2, "per": "role", "across": "servers"}]} => field "limits[1]": same "per"
        role {"max": 1, "across": "servers", "enforcement": "log"} => field "across": "servers" is not allowed with "enforcement": "log"
        role {"max": 1, "across": "servers", "count": "addresses"} => field "across": "servers" is not allowed with "count": "addresses"
        group {"limits": [{"max": 1, "per": "role"}, {"max": 1, "per": "group", "count": "roles", "across": "servers"}]} => field "limits[1].across": "servers" is not allowed with "count": "roles"
        cluster {"max": 9, "per": "cluster", "enforcement": "log", "across": "servers"} => field "across": "servers" is not allowed with "enforcement": "log"
        role {"max": 1, "count": "roles"} => field "count": "roles" is not allowed for a role with "per": "role", where each role has a count of its own
        role {"max": 1, "count": "addresses", "per": "address"} => field "count": "addresses" is not allowed for a role with "per": "address", where each client address
        group {"limits": [{"max": 1, "count": "roles", "per": "address"}]} => field "limits[0].count": "roles" is not allowed for a group
        database {"max": 1, "count": "roles", "per": ["role", "database"]} => field "count": "roles" is not allowed for a database
        cluster {"max": 1, "count": "addresses", "per": ["database", "address"]} => field "count": "addresses" is not allowed for the cluster
        cluster {"max": 1, "count": "roles", "per": "cluster", "on_excess": "replace_oldest"} => field "on_excess": with "count": "roles" only "refuse"
        group {"limits": [{"max": 1, "count": "roles", "per": "group", "on_excess": "replace_idle"}]} => field "limits[0].on_excess": with "count": "roles" only "refuse" is allowed
        role {"limits": [{"max": 1, "network": "10.0.0.0/8"}, {"max": 2, "network": "::ffff:10.0.0.0/104"}]} => field "limits[1]": same
        role {"limits": [{"max": 1}, {"max": 1, "per": "group"}]} => field "limits[1].per": "group" is not allowed for a role
        role {"max": 1, "database": ""} => field "database": not the name
        role {"max": 1, "database": "a\u0000b"} => field "database": not the name of a database
        group {"max": 1} => field "per": must be given for a group: "role", "address", "group", ["role", "database"]
        group {"max": 1, "per": "cluster"} => field "per": "cluster" is not allowed for a group; use "role", "address", "group", ["role", "database"]
        database {"max": 1, "per": "group"} => field "per": "group" is not allowed for a database
        database {"max": 1, "database": "app"} => field "database": not allowed in a database's label
        database {"exempt": true} => field "exempt": not for a database
        cluster {"max": 1} => field "per": must be given for the cluster
        cluster {"exempt": true} => field "exempt": not for the cluster
    "##;

    #[test]
    fn an_error_names_what_is_wrong() {
        for case in WRONG.lines().map(str::trim).filter(|case| !case.is_empty()) {
            let (label, named) = case.split_once(" => ").expect(case);
            let (target, json) = label.split_once(' ').unwrap_or((label, ""));
            let target = match target {
                "role" => LabelTarget::Role,
                "group" => LabelTarget::Group,
                "database" => LabelTarget::Database,
                "cluster" => LabelTarget::Cluster,
                _ => panic!("{case}"),
            };
            let error = on(target, json).expect_err(json);
            assert!(error.contains(named), "{json}: {error}");
            assert!(!error.contains("?"), "{json}: {error}");
        }
    }

    /// In LATIN1, EUC_JP and UTF-8.
    #[test]
    fn a_name_has_the_bytes_that_are_written() {
        let names: [&[u8]; 4] = [b"d\xe9", b"\xc6\xfc\xcb\xdc", "dé".as_bytes(), b"d\\u00e9"];
        for name in names {
            let list = [
                b"{\"limits\": [{\"max\": 1, \"database\": \"",
                name,
                b"\"}]}",
            ]
            .concat();
            let short = [b"{\"max\": 1, \"database\": \"", name, b"\"}"].concat();
            let name: &[u8] = match name {
                b"d\\u00e9" => "dé".as_bytes(),
                name => name,
            };
            for json in [list, short] {
                let label = Label::check(&json, LabelTarget::Role).expect("a label");
                let limit = label.limits.first().expect("a limit");
                assert_eq!(limit.database.as_deref(), Some(name));
            }
        }
        // A name is as long as its bytes.
        for (length, fits) in [(63, true), (64, false)] {
            let name = [0xe9].repeat(length);
            let json = [b"{\"max\": 1, \"database\": \"", name.as_slice(), b"\"}"].concat();
            assert_eq!(Label::check(&json, LabelTarget::Role).is_ok(), fits);
        }
    }

    #[test]
    fn an_error_cites_what_is_written() {
        let table: [(&[u8], &[u8]); 9] = [
            (
                b"{\"max\": 1, \"per\": \"\xe9\"}",
                b"field \"per\": unknown value \"\xe9\"; use",
            ),
            (
                b"{\"max\": \"\xe9\"}",
                b"field \"max\": is \"\xe9\"; expected",
            ),
            (
                b"{\"max\": 1, \"max_wait\": \"\xe9\\\"\"}",
                b"field \"max_wait\": is \"\xe9\"\"; expected",
            ),
            (
                b"{\"max\": 1, \"network\": \"\xe9\"}",
                b"field \"network\": \"\xe9\" is not a network",
            ),
            (b"{\"m\xe9x\": 1}", b"unknown field \"m\xe9x\""),
            (
                b"{\"limits\": [{\"max\": 1, \"m\xe9x\": \"\xe9\"}]}",
                b"unknown field \"limits[0].m\xe9x\"",
            ),
            // Characters that Rust would write as escapes.
            (
                "{\"max\": \"हिन्दी\"}".as_bytes(),
                "is \"हिन्दी\"; expected".as_bytes(),
            ),
            // The place is counted in characters.
            (b"{\"d\xe9\": \xe9}", b"expected value at character 8"),
            (
                "{\"dé\":\n \"é\" é}".as_bytes(),
                b"at character 6 of line 2",
            ),
        ];
        for (json, words) in table {
            let error = Label::check(json, LabelTarget::Role).expect_err("no label");
            let error = encoding::bytes(&error);
            let cites = error.windows(words.len()).any(|part| part == words);
            assert!(cites, "{}", String::from_utf8_lossy(&error));
        }
    }

    #[test]
    fn a_limit_counts_on_this_server_unless_it_says_otherwise() {
        let across = |json: &str| {
            let label = good(LabelTarget::Role, json);
            let across = label.limits.iter().map(|limit| limit.across.word());
            across.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(across(r#"{"max": 1}"#), "server");
        assert_eq!(across(r#"{"max": 1, "across": "servers"}"#), "servers");
        let both = r#"{"limits": [{"max": 300, "across": "servers", "enforcement": "on"}, {"max": 120, "enforcement": "log"}]}"#;
        assert_eq!(across(both), "servers server");
        let words = r#"{"limits": [{"max": 1, "across": "server", "count": "addresses", "enforcement": "log"}]}"#;
        assert_eq!(across(words), "server");
    }

    #[test]
    fn whatever_a_limit_on_sessions_is_about_can_be_counted_across_servers() {
        for target in [
            LabelTarget::Role,
            LabelTarget::Group,
            LabelTarget::Database,
            LabelTarget::Cluster,
        ] {
            for per in target.pers() {
                let per = per.json();
                let json = format!(
                    r#"{{"max": 1, "per": {per}, "across": "servers", "network": "10.0.0.0/8", "max_wait": 7}}"#
                );
                good(target, &json);
            }
        }
    }

    /// Such a label was not set by this version. It is not taken for one about this server alone.
    #[test]
    fn what_cannot_be_counted_across_servers_cannot_be_read() {
        for with in [r#""count": "roles""#, r#""enforcement": "log""#] {
            let json = format!(r#"{{"max": 1, "across": "servers", {with}}}"#);
            let error = Label::read(json.as_bytes()).expect_err(with);
            let expected = format!(r#"field "across": "servers" is not allowed with {with}"#);
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_login_passes_over_unknown_fields() {
        let json = br#"{"limits": [{"max": 1, "color": "red"}], "sound": [1, {"a": 2}]}"#;
        let label = Label::read(json).expect("a label of a later version");
        assert_eq!(label.unknown, ["sound", "limits[0].color"]);
        assert_eq!(label.limits.first().map(|limit| limit.max), Some(1));
        let json = b"{\"max\": 1, \"caf\xe9\": \"\xe9\"}";
        let label = Label::read(json).expect("a label of a later version");
        assert_eq!(label.limits.first().map(|limit| limit.max), Some(1));
        let problem = LabelProblem::Unknown(Object::Role(1), label.unknown);
        let words = b"session_limit: label on role d\xe9 has unknown fields: caf\xe9";
        assert_eq!(problem.words(&|_| b"d\xe9".to_vec()), words);
    }
}
