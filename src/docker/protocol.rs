//! Wire types of the VolumeDriver protocol: bytes to [`VolumeRequest`], answers to JSON. No I/O.
//!
//! The rules are Docker's habits, not a specification: no `Content-Type`, member names in any case
//! (Go's decoder), `Opts` that are null or missing, and an *empty body* when dockerd repeats a call
//! whose connection broke. The last must never pass for a call about a volume without a name.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{Arguments, Operation, Subject};
use crate::shown::shown;

/// Of every answer. Docker does not look at it; go-plugins-helpers and Podman send v1.1.
pub const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The largest request body taken, in bytes. A Create with many options is far below.
pub const MAX_BODY: usize = 64 * 1024;

/// A volume in the answer to Get.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeInfo {
    /// The name that was asked for, byte for byte.
    pub name: String,
    /// Directory for containers; `None` (sent as "") unless mounted here.
    #[serde(serialize_with = "empty_for_none")]
    pub mountpoint: Option<String>,
    /// RFC 3339 with a zone; left out when unknown. (With anything else Go's decoder refuses the
    /// whole answer, and dockerd takes the volume for gone.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Shown by `docker volume inspect`.
    pub status: Map<String, Value>,
}

/// A volume in the answer to List.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    /// Its Docker name.
    pub name: String,
    /// Directory for containers; `None` (sent as "") unless mounted here.
    #[serde(serialize_with = "empty_for_none")]
    pub mountpoint: Option<String>,
}

fn empty_for_none<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text.as_deref().unwrap_or_default())
}

/// The calls of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `/Plugin.Activate`
    Activate,
    /// `/VolumeDriver.Capabilities`
    Capabilities,
    /// `/VolumeDriver.List`
    List,
    /// One about a single volume.
    Volume(VolumeCall),
    /// `/Operator.*`: a question of our own commands.
    Ask(Subject),
}

/// The calls about a single volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeCall {
    /// `/VolumeDriver.Create`
    Create,
    /// `/VolumeDriver.Remove`
    Remove,
    /// `/VolumeDriver.Mount`
    Mount,
    /// `/VolumeDriver.Unmount`
    Unmount,
    /// `/VolumeDriver.Path`
    Path,
    /// `/VolumeDriver.Get`
    Get,
    /// `/Operator.*`: not Docker's, but our own commands'.
    Operate(Operation),
}

impl VolumeCall {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::Remove => "Remove",
            Self::Mount => "Mount",
            Self::Unmount => "Unmount",
            Self::Path => "Path",
            Self::Get => "Get",
            Self::Operate(operation) => operation.path().trim_start_matches('/'),
        }
    }

    /// Whether it changes nothing.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::Path)
    }
}

impl Call {
    /// The call that an HTTP path stands for.
    pub fn from_path(path: &str) -> Option<Self> {
        Some(match path {
            "/Plugin.Activate" => Self::Activate,
            "/VolumeDriver.Capabilities" => Self::Capabilities,
            "/VolumeDriver.List" => Self::List,
            "/VolumeDriver.Create" => Self::Volume(VolumeCall::Create),
            "/VolumeDriver.Remove" => Self::Volume(VolumeCall::Remove),
            "/VolumeDriver.Mount" => Self::Volume(VolumeCall::Mount),
            "/VolumeDriver.Unmount" => Self::Volume(VolumeCall::Unmount),
            "/VolumeDriver.Path" => Self::Volume(VolumeCall::Path),
            "/VolumeDriver.Get" => Self::Volume(VolumeCall::Get),
            _ => {
                if let Some(subject) = Subject::ALL.into_iter().find(|one| one.path() == path) {
                    return Some(Self::Ask(subject));
                }
                let operation = Operation::ALL.into_iter().find(|one| one.path() == path)?;
                Self::Volume(VolumeCall::Operate(operation))
            }
        })
    }
}

/// A call about a single volume, with what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRequest {
    /// The name, unchecked but not empty.
    pub name: String,
    /// What to do with the volume.
    pub action: Action,
}

/// What to do with a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make it, with these options.
    Create(BTreeMap<String, String>),
    /// Delete it.
    Remove,
    /// Mount it for the user with this ID. (Engines before 1.12 send none: empty.)
    Mount(String),
    /// The user with this ID is done.
    Unmount(String),
    /// Where it is mounted.
    Path,
    /// Facts about it.
    Get,
    /// An operator's request.
    Operate(Operation, Arguments),
}

impl VolumeRequest {
    /// Parses a body. (The other calls have nothing in theirs, which may be `{}` or empty.)
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(call: VolumeCall, body: &[u8]) -> Result<Self, String> {
        let members = members_of(body)?;
        let name = member_text(&members, "Name")?;
        if name.is_empty() {
            return Err("the request names no volume".to_owned());
        }
        let action = match call {
            VolumeCall::Create => Action::Create(options(&members)?),
            VolumeCall::Remove => Action::Remove,
            VolumeCall::Mount => Action::Mount(member_text(&members, "ID")?),
            VolumeCall::Unmount => Action::Unmount(member_text(&members, "ID")?),
            VolumeCall::Path => Action::Path,
            VolumeCall::Get => Action::Get,
            VolumeCall::Operate(operation) => {
                let said = |name| Ok::<_, String>(Some(member_text(&members, name)?));
                let said = |name| Ok::<_, String>(said(name)?.filter(|text| !text.is_empty()));
                Action::Operate(
                    operation,
                    Arguments { id: said("ID")?, size: said("Size")?, snapshot: said("Snapshot")? },
                )
            }
        };
        Ok(Self { name, action })
    }
}

/// The members of the object that a body is, each there once.
pub(super) fn members_of(body: &[u8]) -> Result<Map<String, Value>, String> {
    if body.trim_ascii().is_empty() {
        return Err("the request is empty, as when an engine repeats a call whose connection \
                    broke: try again"
            .to_owned());
    }
    // Said here: serde_json would quote what stands there, all of it.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("the request is not a JSON object".to_owned());
    }
    let unusable = |error: &dyn fmt::Display| format!("the request is not a JSON object: {error}");
    let text = std::str::from_utf8(body).map_err(|error| unusable(&error))?;
    let members: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| unusable(&error))?;
    check_unrepeated(text)?;
    Ok(members)
}

/// Refuses a name that is there twice, in the request or among its options: of two values nobody
/// knows which is meant.
fn check_unrepeated(json: &str) -> Result<(), String> {
    let Ok(Members(members)) = serde_json::from_str(json) else { return Ok(()) };
    let mut seen = HashSet::new();
    for (name, value) in &members {
        if !seen.insert(name) {
            return Err(format!("the request says \"{}\" twice", shown(name)));
        }
        if name.eq_ignore_ascii_case("Opts") {
            check_unrepeated(value.get())?;
        }
    }
    Ok(())
}

/// The members of a JSON object, repetitions included.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                std::iter::from_fn(|| map.next_entry().transpose())
                    .collect::<Result<_, _>>()
                    .map(Members)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// A member by its name in any case, as Go's decoder finds it. `null` counts as left out.
pub(super) fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let in_any_case = || {
        let named = members.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value).find(|value| !value.is_null())
    };
    members.get(name).filter(|value| !value.is_null()).or_else(in_any_case)
}

pub(super) fn member_text(members: &Map<String, Value>, name: &str) -> Result<String, String> {
    match member(members, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{name} in the request is not a string")),
    }
}

/// `Opts`. Docker sends strings; old composes sent numbers and flags as they stood in the YAML.
fn options(members: &Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
    let options = match member(members, "Opts") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(options)) => options,
        Some(_) => return Err("Opts in the request is not an object".to_owned()),
    };
    let as_text = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Null => String::new(),
            Value::Array(_) | Value::Object(_) => {
                return Err(format!("the option \"{}\" is neither text nor a number", shown(name)));
            }
        };
        Ok((name.clone(), text))
    };
    options.iter().map(as_text).collect()
}

/// The answer to Activate.
pub fn activated() -> Value {
    json!({ "Implements": ["VolumeDriver"] })
}

/// The answer to Capabilities: the volumes are the same on every host.
pub fn capabilities() -> Value {
    json!({ "Capabilities": { "Scope": "global" } })
}

/// The answer to Create, Remove and Unmount.
pub fn done() -> Value {
    json!({ "Err": "" })
}

/// The answer to Get.
pub fn volume(info: &VolumeInfo) -> Value {
    json!({ "Volume": info, "Err": "" })
}

/// The answer to Path; empty when the volume is not mounted here.
pub fn path(mountpoint: Option<&Path>) -> Value {
    json!({ "Mountpoint": mountpoint.map(Path::to_string_lossy).unwrap_or_default(), "Err": "" })
}

/// The answer to Mount. `None` for a directory that Docker could not use: with an empty one it
/// would start the container *without* the volume and tell nobody.
pub fn mounted(mountpoint: &Path) -> Option<Value> {
    let text = mountpoint.to_str().filter(|_| mountpoint.is_absolute())?;
    Some(json!({ "Mountpoint": text, "Err": "" }))
}

/// Any error. Its status must be 400 or above: Podman ignores `Err` in a success.
pub fn error(message: &str) -> Value {
    json!({ "Err": message })
}

/// What stands before the volumes in the answer to List, …
pub const LIST_BEGIN: &str = "{\"Volumes\":[";
/// … and after them. Only a complete list may have it.
pub const LIST_END: &str = "],\"Err\":\"\"}\n";

/// The volumes of one page in the answer to List.
///
/// # Errors
/// None in practice: names and paths are strings.
pub fn list_page(volumes: &[Listed], is_first: bool) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    for (index, volume) in volumes.iter().enumerate() {
        if index > 0 || !is_first {
            text.push(',');
        }
        text.push_str(&serde_json::to_string(volume)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn create(body: &str) -> Result<BTreeMap<String, String>, String> {
        match VolumeRequest::parse(VolumeCall::Create, body.as_bytes())?.action {
            Action::Create(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_may_be_absent_null_or_not_quite_strings() {
        assert_eq!(create(r#"{"Name":"v"}"#), Ok(BTreeMap::new()));
        assert_eq!(create("{\"Name\":\"v\",\"Opts\":null}\n"), Ok(BTreeMap::new()));
        let options = create(r#"{"Name":"v","Opts":{"size":20,"x":true,"y":null,"z":"s"}}"#);
        let expected = [("size", "20"), ("x", "true"), ("y", ""), ("z", "s")];
        assert_eq!(options, Ok(expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()));
        assert!(create(r#"{"Name":"v","Opts":{"size":[20]}}"#).unwrap_err().contains("\"size\""));
        assert!(create(r#"{"Name":"v","Opts":"size=20"}"#).is_err());
    }

    #[test]
    fn a_body_that_is_no_object_is_not_quoted() {
        let body = format!("\"{}\"", "a".repeat(5000));
        let error = VolumeRequest::parse(VolumeCall::Get, body.as_bytes()).unwrap_err();
        assert_eq!(error, "the request is not a JSON object");
    }

    #[test]
    fn names_of_members_match_in_any_case_and_the_exact_one_wins() {
        let parsed = VolumeRequest::parse(VolumeCall::Mount, br#"{"NAME":"v","id":"i","Id":null}"#);
        let expected = VolumeRequest { name: "v".into(), action: Action::Mount("i".into()) };
        assert_eq!(parsed, Ok(expected));
        let parsed =
            VolumeRequest::parse(VolumeCall::Get, br#"{"name":"a","Name":"b","nAme":"c"}"#);
        assert_eq!(parsed, Ok(VolumeRequest { name: "b".into(), action: Action::Get }));
    }

    #[test]
    fn a_volume_is_sent_with_an_empty_mountpoint_and_without_an_unknown_time() {
        let mut info =
            VolumeInfo { name: "v".into(), mountpoint: None, created_at: None, status: Map::new() };
        assert_eq!(
            volume(&info).to_string(),
            r#"{"Err":"","Volume":{"Mountpoint":"","Name":"v","Status":{}}}"#
        );
        info.created_at = Some("2026-11-22T05:00:00Z".into());
        assert!(volume(&info).to_string().contains(r#""CreatedAt":"2026-11-22T05:00:00Z""#));
    }

    #[test]
    fn a_mountpoint_that_docker_could_not_use_is_no_answer() {
        assert_eq!(mounted(Path::new("")), None);
        assert_eq!(mounted(Path::new("mnt/v")), None);
        assert!(mounted(Path::new("/mnt/v")).is_some());
    }

    #[test]
    fn pages_join_to_one_list() {
        let listed = |name: &str| Listed { name: name.into(), mountpoint: None };
        let first = list_page(&[listed("a"), listed("b")], true).unwrap();
        let second = list_page(&[listed("c")], false).unwrap();
        let all: Value =
            serde_json::from_str(&format!("{LIST_BEGIN}{first}{second}{LIST_END}")).unwrap();
        assert_eq!(all["Volumes"].as_array().unwrap().len(), 3);
    }

    proptest! {
        #[test]
        fn any_body_is_a_request_with_a_name_or_refused(
            call in prop::sample::select(vec![VolumeCall::Create, VolumeCall::Mount, VolumeCall::Get]),
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            members in crate::arbitrary::object(&["Name", "ID", "Opts", "name", "Extra"]),
        ) {
            let json = serde_json::to_vec(&members).unwrap();
            for body in [bytes, json] {
                if let Ok(request) = VolumeRequest::parse(call, &body) {
                    prop_assert!(!request.name.is_empty());
                }
            }
        }
    }
}
